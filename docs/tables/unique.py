"""Distinct ids of real batches beside independent draws: python docs/tables/unique.py STORE CONTEXT."""

from __future__ import annotations

import sys

from retoken.data.tokens import TokenStore
from retoken.plan import Frequencies, fit_zipf
from retoken.plan.measured import measure

SEQUENCES = (1, 4, 16, 64, 256)


def main(folder: str, context_length: int) -> None:
    """Print the fitted law and a row for each size."""
    store = TokenStore.open(folder)
    counts = store.token_counts().numpy()
    exponent, shift = fit_zipf(counts)
    law = Frequencies.zipf(len(counts), exponent, shift)
    print(f"V {len(counts):,}, {counts.sum():,} tokens: exponent {exponent:.3f}, shift {shift:.2f}\n")
    print("| sequences x context | tokens | real batches | independent draws | real over them | fitted law |")
    print("|---|---:|---:|---:|---:|---:|")
    for sequences in SEQUENCES:
        found = measure(store, sequences, context_length)
        cells = (
            f"{sequences} x {context_length}",
            f"{found.tokens:,}",
            f"{found.measured:,.0f} +- {found.spread:,.0f}",
            f"{found.independent:,.0f}",
            f"{found.ratio:.3f}",
            f"{law.unique(found.tokens).sum():,.0f}",
        )
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
