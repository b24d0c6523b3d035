"""How a preparation tells what it is doing."""

import sys


class Reporter:
    """Says notes on stderr and is silent otherwise; the command line draws a bar instead."""

    def note(self, text: str) -> None:
        """Something the caller must hear, such as a corpus that stands in for another."""
        print(f"retoken: {text}", file=sys.stderr)

    def update(self, stage: str, done: int, total: int | None) -> None:
        """`done` of `total` bytes of text through `stage`; `total` is None where nobody knows it."""
