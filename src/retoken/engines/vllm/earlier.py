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
        self.compared = False

    def rows_of(self, ids: Tensor) -> Tensor:
        """Which rows the tokens of a pass read, [T] or [T, H] for ids [T]; they are kept for later passes.

        Raises:
            AttachError: the attention backend does not say where tokens are kept, or not as is known here.
        """
        back = torch.arange(self.index.reach, -1, -1, device=ids.device)
        paging = current_paging()
        if paging is None:  # the engine tries passes without requests
            return self.index(ids[:, None].expand(-1, len(back)), (back == 0).expand(len(ids), -1))[:, -1]
        request, last = paging.places(len(ids))
        position = last[:, None] - back
        slots = paging.slots(request, position.clamp(min=0), self.cache.block_size)
        own = paging.slot_mapping[: len(ids)]
        own = F.pad(own, (0, len(ids) - len(own)), value=-1)
        self._compare(own, slots[:, -1])
        return self.index(self._exchange(ids, own, slots), position >= 0)[:, -1]

    def _exchange(self, ids: Tensor, own: Tensor, slots: Tensor) -> Tensor:
        """Keep ids [T] in their slots [T]; what is kept in slots [T, N] then."""
        size = self.cache.num_gpu_blocks * self.cache.block_size  # pyright: ignore
        if self.kept is None or len(self.kept) != size + 1:
            self.kept = ids.new_zeros(size + 1)
        self.kept[torch.where(own < 0, size, own)] = ids  # padding beyond all slots
        return self.kept[slots]

    def _compare(self, own: Tensor, found: Tensor) -> None:
        """Look whether slots are counted here as the engine does; on a device once, as that stalls it.

        Raises:
            AttachError: they are not.
        """
        if self.compared and own.device.type != "cpu":
            return
        self.compared = True
        if not bool(((own < 0) | (own == found)).all()):
            raise AttachError(
                f"with block_size {self.cache.block_size} the slots of tokens are not those that vLLM's "
                "attention has; rows that are looked up by n-grams cannot be served with it"
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
    if vllm_config.kv_transfer_config is not None:
        raise ConfigError(
            "kv_transfer_config is set; accepted with rows that are looked up by n-grams: none (keys and "
            "values would come without the ids of their tokens)"
        )
    parts = vllm_config.parallel_config.decode_context_parallel_size
    if parts > 1:
        raise ConfigError(
            f"decode_context_parallel_size is {parts}; accepted with rows that are looked up by n-grams: 1"
        )
