"""Token ids of earlier passes, for rows that are looked up by more than the current token."""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context

from retoken.errors import AttachError, ConfigError
from retoken.nn.index import NgramIndex

BLOCK_SIZES = tuple(1 << n for n in range(3, 12))
"""Of attention, beside the engine's own."""
_NEEDED = ("block_table", "query_start_loc", "seq_lens", "slot_mapping")


class Paging(NamedTuple):
    """Where the engine keeps the tokens of a pass over R requests, and those before them."""

    block_table: Tensor
    """[R, ...] the blocks of each request."""
    query_start_loc: Tensor
    """[R + 1]: request r has the pass's tokens from query_start_loc[r] on."""
    seq_lens: Tensor
    """[R] tokens, those of the pass with them."""
    slot_mapping: Tensor
    """The slot of each token of the pass; -1: none, it is padding."""

    def places(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The request of each of so many tokens, and its position there, both [T]; anything at padding."""
        starts, each = self.query_start_loc, torch.arange(tokens, device=self.seq_lens.device)
        request = torch.searchsorted(starts[1:].contiguous(), each, right=True).clamp(max=len(starts) - 2)
        return request, self.seq_lens[request] - starts[request + 1] + each

    def slots(self, request: Tensor, position: Tensor, block_size: int) -> Tensor:
        """The slots of positions [T, N] from 0 on of requests [T]."""
        column = (position // block_size).clamp(max=self.block_table.shape[1] - 1)
        return self.block_table[request[:, None], column] * block_size + position % block_size


class EarlierTokens:
    """Ids by the slots in which vLLM keeps the keys and values of their tokens.

    So they go where those go: with a shared prefix, a request that is computed anew, several answers to a
    prompt; a guess that was wrong is overwritten before anything reads it.
    """

    def __init__(self, index: NgramIndex, vllm_config: VllmConfig) -> None:
        """
        Args:
            index: what looks rows up.
            vllm_config: the engine's, whose cache is measured after the model is built.

        Raises:
            ConfigError: keys and values come from elsewhere, or lie in parts, and no ids with them.
        """
        _refuse_other_caches(vllm_config)
        self.index, self.cache = index, vllm_config.cache_config
        self.kept: Tensor | None = None
        self.block_size = 0
        """Slots of a block, in the first group of layers, as its attention counts them; 0: not known yet."""

    def rows_of(self, ids: Tensor) -> Tensor:
        """Which rows the tokens of a pass read, [T] or [T, H] for ids [T]; they are kept for later passes.

        Raises:
            AttachError: the attention backend does not say where tokens are kept, or not as is known here.
        """
        back = torch.arange(self.index.reach, 0, -1, device=ids.device)
        paging = current_paging()
        if paging is None:  # the engine tries passes without requests
            before = ids[:, None].expand(-1, len(back))
            there = torch.zeros_like(before, dtype=torch.bool)
        else:
            request, position = paging.places(len(ids))
            there = position[:, None] >= back
            before = self._exchange(ids, paging, request, position[:, None] - back)
        own = ids[:, None]
        there = torch.cat([there, torch.ones_like(own, dtype=torch.bool)], 1)
        return self.index(torch.cat([before, own], 1), there)[:, -1]

    def _exchange(self, ids: Tensor, paging: Paging, request: Tensor, before: Tensor) -> Tensor:
        """Keep ids [T] of requests [T]; the ids at positions [T, N] before theirs, anything below 0."""
        own = F.pad(paging.slot_mapping, (0, max(0, len(ids) - len(paging.slot_mapping))), value=-1)
        own = own[: len(ids)]
        self._find_block_size(paging, request, before[:, -1] + 1, own)
        kept = self._room(ids)
        kept[torch.where(own < 0, len(kept) - 1, own)] = ids  # padding behind all slots
        slots = paging.slots(request, before.clamp(min=0), max(self.block_size, 1))
        return kept[slots.clamp(max=len(kept) - 1)]

    def _room(self, ids: Tensor) -> Tensor:
        """A place for each slot, and one for padding."""
        needed = (self.cache.num_gpu_blocks or 0) * max(self.cache.block_size, self.block_size) + 1
        if self.kept is None or len(self.kept) < needed:
            old, self.kept = self.kept, ids.new_zeros(needed)
            if old is not None:
                self.kept[: len(old) - 1] = old[:-1]
        return self.kept

    def _find_block_size(self, paging: Paging, request: Tensor, position: Tensor, own: Tensor) -> None:
        """Find how many slots a block has, from tokens whose slot is known; again for each pass on a host.

        A group of layers may have other blocks than the engine says, and its attention may count in parts of
        them. On a device it is looked for until a pass has tokens of requests, as that stalls it.

        Raises:
            AttachError: slots are counted in no way that is known here.
        """
        if self.block_size and own.device.type != "cpu":
            return
        for size in dict.fromkeys((self.block_size or self.cache.block_size, *BLOCK_SIZES)):
            found = paging.slots(request, position[:, None].clamp(min=0), size)[:, 0]
            if bool(((own < 0) | (own == found)).all()):
                self.block_size = size if self.block_size or bool((own >= 0).any()) else 0
                return
        raise AttachError(
            "the slots of tokens are not those that the block table of vLLM's attention tells, in blocks of "
            f"{self.cache.block_size} or of {BLOCK_SIZES[0]} to {BLOCK_SIZES[-1]}; rows that are looked up "
            "by n-grams cannot be served with it"
        )


def current_paging() -> Paging | None:
    """That of the pass under way; None: it has no requests.

    Raises:
        AttachError: the attention backend keeps it to itself.
    """
    metadata: Any = get_forward_context().attn_metadata
    if not metadata:
        return None
    each = metadata.values() if isinstance(metadata, dict) else ()
    for one in each:
        if all(isinstance(getattr(one, name, None), Tensor) for name in _NEEDED):
            return Paging(*(getattr(one, name) for name in _NEEDED))
    names = ", ".join(sorted({type(one).__name__ for one in each})) or type(metadata).__name__
    raise AttachError(
        f"rows are looked up by n-grams, and vLLM's attention says where tokens are kept by {names}; needed: "
        f"one with {', '.join(_NEEDED)}"
    )


def _refuse_other_caches(vllm_config: VllmConfig) -> None:
    with_rows = "accepted with rows that are looked up by n-grams"
    if vllm_config.kv_transfer_config is not None:
        raise ConfigError(
            f"kv_transfer_config is set; {with_rows}: none (keys and values would come without the ids of "
            "their tokens)"
        )
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if (parts := getattr(vllm_config.parallel_config, name, 1)) > 1:
            raise ConfigError(f"{name} is {parts}; {with_rows}: 1")
    if vllm_config.model_config.use_mla:
        raise ConfigError(
            "the backbone has latent attention (MLA), which does not say where tokens are kept; "
            f"{with_rows}: other attention"
        )
