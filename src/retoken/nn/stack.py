"""All modulators of one model, and what the last forward pass said about their load."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retoken.config import IndexedConfig, ModulatorConfig, MoRTConfig, ReTokenConfig
from retoken.errors import AttachError
from retoken.nn.context import NOT_READY, Fetch, NearFetch, Ready, RowSource
from retoken.nn.index import Head, NgramIndex, TokenAndNgrams, Tokens
from retoken.nn.modulator import Modulator
from retoken.nn.mort import MoRT
from retoken.nn.prepared import Preparation
from retoken.nn.retoken import ReToken
from retoken.nn.table import TableFactory, TokenTable
from retoken.ops import RouterLoad, Routing, balance_loss, fused, router_load
from retoken.ops.fused import Places

SumLoads = Callable[[dict[int, RouterLoad]], dict[int, RouterLoad]]
"""The loads of a whole batch from those of the part that has just been seen: asks the other processes."""


def build_modulator(
    config: ModulatorConfig,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    device: torch.device | None,
    dtype: torch.dtype | None,
    table: TableFactory = TokenTable,
) -> Modulator:
    """The module one layer carries; `table` makes its table."""
    vocab_size = config.table_rows(vocab_size)
    if isinstance(config, MoRTConfig):
        return MoRT(config, vocab_size, hidden_size, num_layers, device, dtype, table)
    if isinstance(config, ReTokenConfig):
        return ReToken(config, vocab_size, hidden_size, device, dtype, table)
    raise AttachError(f"{config.type} has no modulator; accepted: retoken, mort")


def index_for(config: ModulatorConfig, vocab_size: int) -> NgramIndex | None:
    """Which rows the paper's modulators read, of a backbone with that vocabulary; None: the token's."""
    if not isinstance(config, IndexedConfig) or config.by_token:
        return None
    if config.index == "bigram":
        return NgramIndex((Head(order=2, salt=0, rows=config.table_rows(vocab_size)),))
    rows = config.table_rows(vocab_size) - vocab_size
    return TokenAndNgrams((Head(order=2, salt=0, rows=rows, start=vocab_size),))


def _is_bare(module: nn.Module) -> bool:
    """Whether calling a modulator does what its class says: nothing is hooked, wrapped or replaced."""
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return hasattr(type(module), "ready") and not hooked


class ModulatorStack(nn.Module):
    """`layers`: {str(layer): modulator}; its parameters' names are the checkpoint's."""

    def __init__(
        self,
        config: ModulatorConfig,
        modulators: Mapping[int, nn.Module],
        index: NgramIndex | None = None,
    ) -> None:
        """
        Args:
            config: What they are.
            modulators: {layer: its modulator}.
            index: Which rows positions read; None: the row of their token.
        """
        super().__init__()
        self.config = config
        self.index = index
        self.layers = nn.ModuleDict({str(layer): module for layer, module in modulators.items()})
        self.source: RowSource | None = None
        self.routings: dict[int, Routing] | None = None
        self.mask: Tensor | None = None
        self.summed: dict[int, RouterLoad] | None = None
        self.batch_load: dict[int, RouterLoad] | SumLoads | None = None

    def begin(self, ids: Tensor, mask: Tensor | None, before: Tokens | None = None) -> Tensor:
        """A forward pass over token ids [B, S] starts; `mask` [B, S] is false where they are padding.

        Args:
            ids, mask: as said.
            before: the tokens of earlier passes right before these, where rows are looked up by them.

        Returns:
            Which rows the positions read: the ids, or [B, S] or [B, S, H] hashed.

        Raises:
            AttachError: an id has no row (not looked for where that would stall a device or a compiler).
        """
        self.routings, self.mask, self.summed = None, mask, None
        if self.index is not None:
            return self.index(ids, mask, before)
        if type(ids) is Tensor and ids.device.type == "cpu" and not torch.compiler.is_compiling():
            self._check_ids(ids)
        return ids

    def prefetch(self, ids: Tensor) -> None:
        """Let the source of rows know the token ids [B, S] of the pass after this one, a text's beginning."""
        if self.source is not None:
            self.source.prefetch(ids if self.index is None else self.index(ids, None))

    def fetch(self, ids: Tensor) -> Fetch | None:
        """The rows of a pass that reads those of `ids`; None where each layer looks them up in its table."""
        return None if self.source is None else self.source.fetch(ids)

    def ready(self, ids: Tensor, fetch: Fetch | None) -> Ready:
        """What modulators do in a pass that reads the rows of ids [B, S], where kernels can read them.

        Args:
            ids: on the host; [B, S, H] where a position's rows are summed.
            fetch: what `fetch` gave for them.
        """
        if not fused.serves() or type(ids) is not Tensor or ids.device.type != "cpu":
            return NOT_READY
        sums = self.config.sums_rows
        if not isinstance(self.config, MoRTConfig if sums else IndexedConfig):  # no kernel gates by a sum
            return NOT_READY
        if fetch is not None and not isinstance(fetch, NearFetch):
            return NOT_READY
        places = Places.of(ids) if fetch is None else fetch.places()
        if places is None:
            return NOT_READY
        now = Preparation(fetch, ids.shape if sums else None)
        found = {}
        for name, module in self.layers.items():
            if _is_bare(module) and (ready := now.ready(int(name), module, ids)) is not None:
                found[int(name)] = ready
        return Ready(found, self._room(ids.shape, places, sums))

    def _room(self, shape: Sequence[int], places: Places, sums: bool) -> fused.Room:
        """Of a pass over positions [...], [..., H] where rows are summed."""
        positions, heads = (shape[:-1], shape[-1]) if sums else (shape, 1)
        return fused.Room(positions, self._width, places, len(self.layers), heads)

    @property
    def _width(self) -> int:
        """D."""
        return next(iter(self.layers.values())).table.width  # pyright: ignore

    def _check_ids(self, ids: Tensor) -> None:
        if ids.numel() == 0:
            return
        table: TokenTable = next(iter(self.layers.values())).table  # pyright: ignore
        rows = table.vocab_size
        low, high = (int(x) for x in ids.aminmax())
        if low < 0 or high >= rows:
            raise AttachError(
                f"input_ids range over {low}..{high}; the tables have rows for 0..{rows - 1} "
                "(model.resize_token_embeddings makes room)"
            )

    def finish(self, routings: dict[int, Routing]) -> None:
        """Keep of the pass that ran what its routers chose."""
        self.routings = routings

    def part_of(self, total: dict[int, RouterLoad] | SumLoads | None) -> None:
        """Take the next balance losses as parts of a batch with these loads; None: each pass is a batch."""
        self.batch_load = total

    def _whole(self, loads: dict[int, RouterLoad]) -> dict[int, RouterLoad] | None:
        """What `loads`, the last pass's, are a part of; other processes are asked once a pass."""
        if not callable(self.batch_load):
            return self.batch_load
        if self.summed is None:
            self.summed = self.batch_load(loads)
        return self.summed

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the model has not run yet, and a pass's tensors cannot be copied."""
        return {**self.__dict__, "routings": None, "mask": None, "summed": None, "batch_load": None}

    @property
    def adds_loss(self) -> bool:
        """Whether there is a balance loss to add."""
        return isinstance(self.config, MoRTConfig) and self.config.balance_coef > 0

    def load_of_last_forward(self) -> dict[int, RouterLoad]:
        """{layer: P_i, n_i, T} of the last forward pass (Eq. 21); empty for ReToken.

        Raises:
            AttachError: no forward pass has run yet.
        """
        if self.routings is None:
            raise AttachError("the balance loss is of the last forward pass, and none has run yet")
        return {i: router_load(r.logits_TE, r.chosen_TK, self.mask) for i, r in self.routings.items()}

    def balance_loss(self) -> Tensor:
        """Eq. 21 with lambda, averaged over layers (App. E); a float32 scalar, 0 for ReToken."""
        loads = self.load_of_last_forward()
        if not isinstance(self.config, MoRTConfig) or not loads:
            return torch.zeros(())
        self._check_gradient_path(loads)
        top_k, whole = self.config.top_k, self._whole(loads)
        losses = [balance_loss(load, top_k, whole[i] if whole else None) for i, load in loads.items()]
        return self.config.balance_coef * torch.stack([x.to(losses[0].device) for x in losses]).mean()

    def _check_gradient_path(self, loads: dict[int, RouterLoad]) -> None:
        trains = self.training and torch.is_grad_enabled()
        wants = [self.layers[str(i)].router.weight.requires_grad for i in loads]  # pyright: ignore
        if trains and any(
            w and not x.probability_E.requires_grad for w, x in zip(wants, loads.values(), strict=True)
        ):
            raise AttachError(
                "the router's balance loss has no gradient path: activation checkpointing runs with "
                "use_reentrant=True; accepted: use_reentrant=False, or balance_coef=0"
            )

    def check_resize(self, old: int, new: int) -> None:
        """Look whether the tables could follow a vocabulary of `old` tokens to `new`.

        Raises:
            AttachError: rows are looked up by hashes, which spread them by the vocabulary's size.
        """
        if self.index is not None and new != old:
            raise AttachError(
                f"rows are looked up by n-grams of a vocabulary of {old} tokens, not {new}; accepted: "
                "resize_token_embeddings before attach"
            )

    def resize(self, vocab_size: int) -> None:
        """Give every table `vocab_size` tokens; new rows are neutral. What is hashed stays as it is."""
        if self.index is not None:
            return
        for module in self.layers.values():
            module.table.resize(vocab_size)  # pyright: ignore
