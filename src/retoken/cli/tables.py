"""Tables for a terminal, as several verbs show them."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def print_table(console: Console, table: Table) -> None:
    """Its title on a line of its own: a table's own would be wrapped at the table's width."""
    title, table.title = table.title, None
    console.print(f"\n[bold]{title}[/bold]")
    console.print(table)


def plain_table(*columns: str, title: str, left: int = 1) -> Table:
    """No lines; the first `left` columns are words, the others numbers."""
    table = Table(title=title, box=None)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", no_wrap=True)
    return table
