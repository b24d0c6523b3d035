"""Held-out loss: nats per token and bits per byte, and by token id. Never with an auxiliary loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from retoken.checkpoint.files import atomic_file
from retoken.train.world import World

Observer = Callable[[Tensor, Tensor | None], None]
"""Told of every batch, in order: its windows [B, S + 1], and the nats of each predicted token [B, S], float64
on the host; None in place of them where another process took the batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Sums over the evaluated tokens, by the id of the token that was to be predicted."""

    nll_V: Tensor
    """Summed negative log-likelihood in nats, float64."""
    count_V: Tensor
    """How often each id was to be predicted, float64."""
    token_bytes_V: Tensor
    """UTF-8 bytes of each id's text."""

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nll_V.sum().item() / self.count_V.sum().item()

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of the predicted tokens' text; None where that has none."""
        size = (self.count_V * self.token_bytes_V).sum().item()
        return self.nll_V.sum().item() / math.log(2) / size if size else None

    def save(self, path: Path) -> None:
        """`nll` and `count`, both [V] float64, as safetensors."""
        with atomic_file(path) as partial:
            save_file({"nll": self.nll_V, "count": self.count_V}, partial)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Tensor],
    token_bytes: Tensor,
    world: World,
    dtype: torch.dtype = torch.float32,
    observe: Observer | None = None,
) -> Evaluation:
    """Loss of `model` on windows [B, S + 1], summed over the processes: each takes every size-th batch.

    All run as many forward passes, which divided tables and backbones need: at the end some run one in vain.

    Args:
        model: A causal language model; its training mode is put back.
        batches: The same batches in every process.
        token_bytes: [V] UTF-8 bytes of each token id.
        world: The processes that share the work.
        dtype: bfloat16 evaluates under autocast, as such a run trains.
        observe: Sees what the sums leave out: which window and place each token's loss came from.
    """
    sums = torch.zeros(2, token_bytes.numel(), dtype=torch.float64)
    with eval_mode(model), autocast(world.device, dtype):
        for group in _groups(batches, world.size):
            own = world.rank < len(group)
            windows = group[world.rank if own else 0]
            nll_BS = _token_nll(model, windows.to(world.device))
            sums += _by_id(windows, nll_BS, sums.shape[1]) if own else 0
            for number, each in enumerate(group if observe else ()):
                observe(each, nll_BS if number == world.rank else None)  # pyright: ignore[reportOptionalCall]
    nll, count = world.sum(sums).cpu()
    return Evaluation(nll_V=nll, count_V=count, token_bytes_V=token_bytes.double())


def _groups(batches: Iterable[Tensor], size: int) -> Iterator[list[Tensor]]:
    rest = iter(batches)
    while group := list(islice(rest, size)):
        yield group


def _token_nll(model: nn.Module, windows: Tensor) -> Tensor:
    """[B, S] float64 on the host: nats of every token but each window's first."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    targets = windows[:, 1:]
    nll = F.cross_entropy(logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1), reduction="none")
    return nll.double().cpu().view(targets.shape)


def _by_id(windows: Tensor, nll_BS: Tensor, vocab_size: int) -> Tensor:
    """[2, V] float64: nll and counts."""
    targets = windows[:, 1:].reshape(-1).cpu()
    total = torch.zeros(vocab_size, dtype=torch.float64).index_add_(0, targets, nll_BS.reshape(-1))
    return torch.stack([total, torch.bincount(targets, minlength=vocab_size).double()])


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Arithmetic in `dtype` over float32 parameters."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """`model.eval()` for a while."""
    before = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(before)
