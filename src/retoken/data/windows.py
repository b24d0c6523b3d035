"""Windows of a split: shuffled for training, resumable and rank-aware; in order for evaluation."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from retoken.data.shards import TokenSplit
from retoken.errors import ConfigError, DataError


class WindowReader:
    """Endless batches of shuffled windows, each window once in an epoch, no window on two ranks.

    The windows are the split cut every `window` tokens (a shorter rest at its end is never seen). All epochs
    form one long row: epoch 0's permutation, then epoch 1's, ... Each global batch takes the next
    `batch_size * world_size` of the row, and rank r the r-th part of it. So the order is the same for any
    world size as long as that product is, and the whole state is one number: how far along the row we are.

    Args:
        split: where the tokens are.
        window: tokens of a window (the trainer asks for context length + 1).
        batch_size: windows of a batch on this rank.
        seed: decides the permutations.
        rank: of this process.
        world_size: number of processes.

    Raises:
        ConfigError: a size is not positive, or the rank isn't below the world size.
        DataError: the split is shorter than one window.
    """

    def __init__(
        self,
        split: TokenSplit,
        *,
        window: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if window < 1 or batch_size < 1 or not 0 <= rank < world_size:
            raise ConfigError(
                f"window {window}, batch_size {batch_size}, rank {rank} of {world_size}; "
                "accepted: positive sizes and a rank below the world size"
            )
        self.windows = _window_count(split, window)
        self._split = split
        self._window = window
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._position = 0
        self._permutation = lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.PCG64([self._seed, epoch])).permutation(self.windows)

    @property
    def epoch(self) -> int:
        """Epoch of the next global batch's first window."""
        return self._position // self.windows

    def next_indices(self) -> list[int]:
        """Window numbers of this rank's next batch; moves on."""
        start = self._position + self._rank * self._batch_size
        self._position += self._batch_size * self._world_size
        places = (divmod(place, self.windows) for place in range(start, start + self._batch_size))
        return [int(self._permutation(epoch)[index]) for epoch, index in places]

    def next_batch(self) -> torch.Tensor:
        """The next windows of this rank: int64 [batch_size, window], owned by the caller."""
        return _gather(self._split, self.next_indices(), self._window)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return self

    def __next__(self) -> torch.Tensor:
        return self.next_batch()

    def state_dict(self) -> dict[str, int]:
        """JSON-able; the same on every rank, and good for another world size of equal global batch."""
        return {
            "position": self._position,
            "windows": self.windows,
            "window": self._window,
            "seed": self._seed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly behind the batch after which `state` was taken.

        Raises:
            DataError: the state is of another split, window or seed, or is none.
        """
        try:
            position = int(state["position"])
            told = {key: int(state[key]) for key in ("windows", "window", "seed")}
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"data position is no saved state of a WindowReader: {error!r}") from None
        mine = self.state_dict()
        wrong = [
            f"{key} {value} saved, {mine[key]} here" for key, value in told.items() if value != mine[key]
        ]
        if wrong or position < 0:
            raise DataError(
                f"data position belongs to another run: {'; '.join(wrong) or f'position {position}'}"
            )
        self._position = position


def eval_windows(
    split: TokenSplit, window: int, max_tokens: int = 0, *, batch_size: int = 8
) -> Iterator[torch.Tensor]:
    """Non-overlapping windows in order, for evaluation; always the same ones.

    Where `max_tokens` does not reach the whole split, the windows are spread evenly over it, so that a short
    evaluation sees every part of the corpus.

    Args:
        split: where the tokens are.
        window: tokens of a window (context length + 1).
        max_tokens: read at most this many tokens, but at least one window; 0 for all.
        batch_size: windows of a batch; the last one may be smaller.

    Yields:
        int64 [batch, window].

    Raises:
        DataError: the split is shorter than one window.
    """
    chosen = _chosen(split, window, max_tokens)
    for start in range(0, len(chosen), batch_size):
        yield _gather(split, chosen[start : start + batch_size], window)


def eval_starts(split: TokenSplit, window: int, max_tokens: int = 0) -> np.ndarray:
    """Where each window of `eval_windows` starts in the split, int64 [windows]; arguments as there."""
    return np.array(_chosen(split, window, max_tokens), dtype=np.int64) * window


def _chosen(split: TokenSplit, window: int, max_tokens: int) -> list[int]:
    total = _window_count(split, window)
    count = min(total, max(1, max_tokens // window)) if max_tokens else total
    return [index * total // count for index in range(count)]


def bytes_of(windows: torch.Tensor, token_bytes: torch.Tensor) -> int:
    """Bytes of text that a model predicts in `windows` [B, W]: of all tokens but each window's first.

    Bits per byte is then (sum of -ln p over windows[:, 1:]) / ln 2 / bytes. End-of-text tokens have no bytes.
    """
    return int(token_bytes[windows[:, 1:]].sum())


def _window_count(split: TokenSplit, window: int) -> int:
    count = len(split) // window if window > 0 else 0
    if not count:
        raise DataError(
            f"split '{split.name}' has {len(split)} tokens; accepted: at least one window of {window}"
        )
    return count


def _gather(split: TokenSplit, indices: list[int], window: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([split.read(index * window, window) for index in indices]))
