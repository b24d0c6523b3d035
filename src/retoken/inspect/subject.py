"""What is looked at: a model, and held-out text in two halves, one to look with and one to measure on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from retoken.attach.api import stack_of
from retoken.attach.checkpoint import FIELD, is_folded
from retoken.config import ModulatorConfig, require_by_token
from retoken.data.tokens import TokenStore
from retoken.errors import CheckpointError, DataError
from retoken.eval.heldout import context_of
from retoken.eval.loading import Loaded
from retoken.eval.material import check_fit, store_material
from retoken.nn import Modulator, TokenTable
from retoken.train.evaluate import autocast, eval_mode
from retoken.train.world import World

BATCH = 16
"""Windows of a forward pass; the sums do not depend on it."""


def own_modulators(loaded: Loaded) -> dict[int, Modulator]:
    """{layer: modulator} of a model whose tables can be looked into.

    Raises:
        CheckpointError: nothing is attached, or the rows are folded, or lie in a packed file.
        ConfigError: rows are looked up by more than the token, or it is a rival that is attached.
    """
    model = loaded.model
    if not hasattr(model, "retoken"):
        raise CheckpointError(
            f"checkpoint {loaded.name} carries no token-indexed parameters; accepted: a model trained with "
            "--variant retoken or mort, or attached and saved"
        )
    stack = stack_of(model)
    require_by_token(stack.config, f"checkpoint {loaded.name}")
    found = stack.layers
    folded = is_folded(getattr(model.config, FIELD))
    if folded or any(type(module.table) is not TokenTable for module in found.values()):
        raise CheckpointError(
            f"checkpoint {loaded.name}: its rows are {'folded' if folded else 'packed'}; accepted: the "
            "checkpoint it was made of"
        )
    return {int(layer): module for layer, module in found.items()}  # pyright: ignore


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with tables at hand, on the device that computes, and held-out windows."""

    model: PreTrainedModel
    modulators: dict[int, Modulator]
    """{layer: modulator}, in order of depth."""
    dtype: torch.dtype
    """Arithmetic: bfloat16 computes under autocast, as such a run trains."""
    looked_NW: Tensor
    """Windows [N, S + 1] to estimate and to count with."""
    measured_MW: Tensor
    """Windows [M, S + 1] to measure on. None is among the others."""
    count_V: Tensor
    """[V] int64: how often each token id occurs in the training split."""

    @classmethod
    def of_store(cls, loaded: Loaded, folder: Path, world: World, *, max_tokens: int = 0) -> Subject:
        """A checkpoint with the held-out split of a token store.

        Args:
            loaded: the checkpoint.
            folder: the store.
            world: where to compute.
            max_tokens: tokens of both halves together, spread evenly over the split; 0: all.

        Raises:
            CheckpointError: nothing is attached whose rows could be looked into.
            DataError: the store is broken, made with another tokenizer, or has less than two windows.
        """
        modulators = own_modulators(loaded)
        material = store_material(folder, context_of(loaded, 0), max_tokens=max_tokens)
        check_fit(loaded, material)
        windows = torch.cat(list(material.batches()))
        if len(windows) < 2:
            raise DataError(
                f"{folder}: {len(windows)} held-out window where {max_tokens or 'all'} tokens are read; "
                "accepted: two or more"
            )
        loaded.model.to(world.device)  # pyright: ignore
        return cls(
            model=loaded.model,
            modulators=modulators,
            dtype=loaded.run.arithmetic if loaded.run else torch.float32,
            looked_NW=windows[::2],
            measured_MW=windows[1::2],
            count_V=_counts(TokenStore.open(folder), next(iter(modulators.values())).table.vocab_size),
        )

    @property
    def config(self) -> ModulatorConfig:
        """What is attached."""
        return stack_of(self.model).config

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.count_V)

    @property
    def measured_tokens(self) -> int:
        """Tokens that a measurement predicts."""
        return self.measured_MW[:, 1:].numel()

    def passes(self, windows_NW: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(ids [B, S], what was predicted of them: nll [B, S] in nats, float32) of windows, in order."""
        device = self.model.device
        with eval_mode(self.model), autocast(device, self.dtype):
            for windows in windows_NW.to(device).split(BATCH):
                logits = self.model(input_ids=windows[:, :-1], use_cache=False).logits  # pyright: ignore
                nll = F.cross_entropy(
                    logits.flatten(0, 1).float(), windows[:, 1:].flatten(), reduction="none"
                )
                yield windows[:, :-1], nll.view(len(windows), -1)

    @torch.no_grad()
    def window_losses(self, windows_NW: Tensor) -> Tensor:
        """Summed loss of each window [N], nats, float64, on the host."""
        return torch.cat([nll.double().sum(1) for _, nll in self.passes(windows_NW)]).cpu()

    def loss(self) -> float:
        """Held-out loss of the model as it now is, nats per token, on the measured half."""
        return self.window_losses(self.measured_MW).sum().item() / self.measured_tokens


def _counts(store: TokenStore, vocab_size: int) -> Tensor:
    """[V]: a model may have more rows than its data has ids."""
    counts = store.token_counts("train")
    return F.pad(counts, (0, vocab_size - len(counts)))
