"""How `retoken eval` shows held-out loss: one domain or several, one checkpoint or two, by kinds of token."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from retoken.cli.options import as_json as json_text
from retoken.cli.tables import plain_table, print_table
from retoken.compare.verdict import signed
from retoken.eval import DomainLoss
from retoken.eval.pairing import LEAST_UNITS

if TYPE_CHECKING:
    from retoken.eval.breakdown import GroupLoss
    from retoken.eval.pairing import GroupDifference

WIDTH = 110
_WORDS = {
    "band": "by occurrences in the training split of {counts}",
    "row": "by occurrences of the token predicted from, in the training split of {counts}",
    "position": "by place in the window that a token is predicted from",
    "part": "by part of the vocabulary",
}


@dataclass(frozen=True, kw_only=True)
class HeldOutReport:
    """What was measured, of what."""

    checkpoint: str
    against: str | None
    counts: str | None
    """The store that bands are counted in."""
    domains: list[DomainLoss]

    def to_dict(self) -> dict[str, Any]:
        """One domain's numbers at the top, or several in a list."""
        head: dict[str, Any] = {"checkpoint": self.checkpoint}
        names = {"other": self.against, "counts": self.counts}
        head |= {name: value for name, value in names.items() if value is not None}
        domains = [each.to_dict() for each in self.domains]
        return {**head, **domains[0]} if len(domains) == 1 else {**head, "domains": domains}


@contextmanager
def said(aloud: bool) -> Iterator[Callable[[str], None]]:
    """Tells what is measured, on a terminal."""
    console = Console(stderr=True)
    if not aloud or not sys.stderr.isatty():
        yield lambda name: None
        return
    with console.status("held-out loss") as status:
        yield lambda name: status.update(f"held-out loss on {name}")


def show(found: HeldOutReport, *, as_json: bool, plot: Path | None) -> None:
    """Print, and draw where asked for."""
    if plot is not None:
        from retoken.report.breakdown import breakdown_panel
        from retoken.report.standalone import save

        save(breakdown_panel(found.domains, found.against is not None), plot)
    if as_json:
        print(json_text(found.to_dict()))
        return
    console = Console(width=max(WIDTH, Console().width), highlight=False, soft_wrap=True)
    if len(found.domains) == 1:
        _show_one(found.checkpoint, found.domains[0])
    if found.against or len(found.domains) > 1:
        print_table(console, _domain_table(found))
    for domain in found.domains:
        for kind, groups in domain.by.items():
            words = _WORDS[kind].format(counts=found.counts)
            title = words if len(found.domains) == 1 else f"{domain.domain}, {words}"
            print_table(console, _group_table(title, groups))
    if found.against:
        _explain(console, found.domains)
    if plot is not None:
        print(f"\nfigure: {plot}")


def _show_one(name: str, domain: DomainLoss) -> None:
    found = domain.held_out
    print(f"{name} on {domain.on}")
    print(f"  held-out loss  {found.val_loss:.4f} nats per token (perplexity {found.perplexity:.2f})")
    print(f"  bits per byte  {found.val_bits_per_byte:.4f}")
    print(f"  tokens         {found.tokens:,} ({found.bytes:,} bytes), context {found.context_length}")


def _domain_table(found: HeldOutReport) -> Table:
    title = f"{found.checkpoint} against {found.against}" if found.against else found.checkpoint
    table = plain_table("domain", "tokens", "loss", "bits/byte", *_pair_columns(found.against), title=title)
    for each in found.domains:
        held = each.held_out
        numbers = (f"{held.tokens:,}", f"{held.val_loss:.4f}", f"{held.val_bits_per_byte:.4f}")
        table.add_row(each.domain, *numbers, *_pair(each.difference))
    return table


def _group_table(title: str, groups: Sequence[GroupLoss]) -> Table:
    paired = any(each.against for each in groups)
    shares = ("of diff.",) if paired else ()
    columns = ("group", "tokens", "share", "loss", "bits/byte", *_pair_columns(paired), *shares)
    table = plain_table(*columns, title=title)
    for each in groups:
        bits = "–" if each.val_bits_per_byte is None else f"{each.val_bits_per_byte:.4f}"
        numbers = (f"{each.tokens:,}", f"{100 * each.share:.1f} %", f"{each.val_loss:.4f}", bits)
        share = (f"{signed(100 * each.against.share, 1).removeprefix('+')} %",) if each.against else ()
        table.add_row(each.group, *numbers, *_pair(each.against), *share)
    return table


def _pair_columns(paired: object) -> tuple[str, ...]:
    return ("other", "difference", "95 % interval") if paired else ()


def _pair(found: GroupDifference | None) -> tuple[str, ...]:
    if found is None:
        return ()
    span = "–" if found.low is None or found.high is None else f"{signed(found.low)} to {signed(found.high)}"
    return f"{found.val_loss:.4f}", signed(found.difference), span


def _explain(console: Console, domains: Sequence[DomainLoss]) -> None:
    drawn = "; ".join(f"{each.domain} {each.units:,} {each.unit}s" for each in domains)
    console.print(
        "\ndifferences in nats per token, negative: lower than the other's; intervals over redrawn text "
        f"({drawn}), none from fewer than {LEAST_UNITS}, and not over seeds of training"
    )
