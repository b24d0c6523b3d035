"""What a prepared corpus says: how often rows are read, and how many distinct ones real batches hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from retoken.data.tokens import TokenStore, WindowReader, eval_windows
from retoken.nn.index import NgramIndex
from retoken.plan.frequency import Frequencies


@dataclass(frozen=True, kw_only=True, slots=True)
class Uniques:
    """Distinct ids in batches of one size."""

    tokens: int
    """T."""
    measured: float
    """Mean over real batches."""
    spread: float
    """Standard deviation over them."""
    independent: float
    """sum over x of 1 - (1 - p_x)^T, with p from the counts of the whole split."""
    batches: int
    """Real batches counted."""

    @property
    def ratio(self) -> float:
        """Measured over independent: below 1, because a document repeats its own words."""
        return self.measured / self.independent


def of_store(store: TokenStore, vocab_size: int | None = None) -> Frequencies:
    """The counts of a store's training split.

    Raises:
        DataError: the model has fewer ids than the store.
    """
    counts = store.token_counts("train").numpy()
    return Frequencies.of_counts(counts, vocab_size, str(store.folder))


def of_lookups(
    store: TokenStore, index: NgramIndex | None, rows: int, context_length: int, tokens: int = 1 << 22
) -> Frequencies:
    """Of the rows that positions of a store's training split read.

    Args:
        store: the corpus.
        index: what looks them up; None: they are those of tokens, whose counts the store has.
        rows: of a table.
        context_length: tokens of a sequence.
        tokens: how many are looked at, spread evenly over the split.

    Raises:
        DataError: the split is shorter than one sequence, or the store has more ids than there are rows.
    """
    if index is None:
        return of_store(store, rows)
    counts = np.zeros(rows)
    for ids in eval_windows(store.split("train"), context_length, tokens, batch_size=64):
        counts += np.bincount(index(ids, None).numpy().ravel(), minlength=rows)
    return Frequencies.of_counts(counts, rows, str(store.folder), index.rows_per_position)


def measure(
    store: TokenStore,
    sequences: int,
    context_length: int,
    *,
    batches: int = 16,
    seed: int = 0,
    index: NgramIndex | None = None,
    frequencies: Frequencies | None = None,
) -> Uniques:
    """Count distinct ids in shuffled batches as training draws them, each window once.

    Fewer than `batches` are drawn where the split is not that long.

    Args:
        store: the corpus.
        sequences: of a batch.
        context_length: tokens of a sequence.
        batches: how many at most.
        seed: of the order.
        index: what looks rows up; None: ids are tokens.
        frequencies: of the ids; None: of the tokens.

    Raises:
        DataError: the split is shorter than one batch.
    """
    split, window = store.split("train"), context_length + 1
    reader = WindowReader(split, window=window, batch_size=sequences, seed=seed)
    count = max(1, min(batches, reader.windows // sequences))
    found = np.array([_distinct(reader, index) for _ in range(count)])
    tokens = sequences * context_length
    independent = (frequencies or of_store(store)).clustered(()).unique(tokens).sum()
    return Uniques(
        tokens=tokens,
        measured=float(found.mean()),
        spread=float(found.std()),
        independent=float(independent),
        batches=count,
    )


def with_clustering(
    frequencies: Frequencies,
    store: TokenStore,
    sequences: Sequence[int],
    context_length: int,
    index: NgramIndex | None = None,
) -> tuple[Frequencies, list[Uniques]]:
    """`frequencies` corrected by what batches of these sizes hold, as far as the store reaches.

    Returns:
        The corrected frequencies, and the measurements.
    """
    found = [
        measure(store, size, context_length, index=index, frequencies=frequencies)
        for size in _reachable(store, sequences, context_length)
    ]
    return frequencies.clustered(tuple((each.tokens, each.ratio) for each in found)), found


def _reachable(store: TokenStore, sequences: Sequence[int], context_length: int) -> Iterator[int]:
    """The sizes up to a quarter of the split, ascending; that quarter in place of the larger ones.

    A batch that is most of the split holds its ids by construction, which says nothing of other text.
    """
    most = max(1, len(store.split("train")) // (context_length + 1) // 4)
    yield from sorted({min(size, most) for size in sequences})


def _distinct(reader: WindowReader, index: NgramIndex | None) -> int:
    ids = next(reader)[:, :-1]
    return len(np.unique((ids if index is None else index(ids, None)).numpy()))
