"""What ranks ask for in a bench of the exchange alone: real ids, and routers that choose evenly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retoken.data.tokens import TokenStore, WindowReader


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """Batches of every rank."""

    ids: np.ndarray
    """[ranks, batches, T] int64, as training draws them from a corpus."""
    chosen: np.ndarray
    """[ranks, batches, layers, T, K] int64: modulators, each set of K as likely as another."""

    @classmethod
    def draw(
        cls,
        store: TokenStore,
        *,
        ranks: int,
        batches: int,
        tokens: int,
        context_length: int,
        layers: int,
        modulators: int,
        top_k: int,
    ) -> Requests:
        """From the training split.

        Args:
            tokens: Of a rank's batch; a multiple of `context_length`.
            modulators, top_k: E and K.

        Raises:
            DataError: The split is shorter than a batch.
        """
        readers = [
            WindowReader(
                store.split("train"),
                window=context_length + 1,
                batch_size=tokens // context_length,
                seed=0,
                rank=rank,
                world_size=ranks,
            )
            for rank in range(ranks)
        ]
        drawn = [[next(reader)[:, :-1].reshape(-1).numpy() for _ in range(batches)] for reader in readers]
        score = np.random.default_rng(0).random((ranks, batches, layers, tokens, modulators))
        chosen = np.argsort(score, axis=-1)[..., :top_k]
        return cls(ids=np.array(drawn, np.int64), chosen=chosen)

    def save(self, folder: Path) -> None:
        """For ranks to read."""
        np.save(folder / "ids.npy", self.ids)
        np.save(folder / "chosen.npy", self.chosen)
