"""What a lookup's bench works on: a table or records, and the states of some tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from retoken.ops import Routing
from retoken.ops.fused import KINDS, Near
from retoken.ops.norm import norm_gain
from retoken.ops.quantize import LARGEST, STORED, RowType
from retoken.serving.layout import RecordLayout
from retoken.serving.stored import StoredRows

Operation = Literal["gather", "gate", "folded", "mix", "route", "gemma"]
EPS, DEPTH = 1e-6, 12
"""Of Norm, and N_l of Eq. 5."""
BLOCK = 1024
"""Tokens whose rows are drawn; the table repeats them, at other addresses."""
LAYERS = 28
"""Of a pass by the kernels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One table and what is done with its rows."""

    operation: Operation
    """What is done."""
    rows: RowType
    """Type of the rows; int8 and float8_e4m3 lie in records."""
    experts: int
    """E; 1 for ReToken."""
    top_k: int
    """K; 1 for ReToken."""
    vocab_size: int
    """V."""
    width: int
    """D."""

    @property
    def states(self) -> torch.dtype:
        """Of increments, hidden states, scales and routers."""
        return torch.float32 if self.rows == "float32" else torch.bfloat16

    @property
    def token_bytes(self) -> int:
        """Bytes of the rows that one token has read, with their scales; 0 where none are read."""
        if self.operation == "route":
            return 0
        return self.top_k * (self.width * STORED[self.rows].itemsize + 4 * (self.rows in LARGEST))

    @property
    def title(self) -> str:
        """For people."""
        many = f", E={self.experts} K={self.top_k}" if self.experts > 1 else ""
        return f"{self.operation}{many}, {self.rows}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A way to do it."""

    name: str
    """For people; the first of a setting is ours."""
    call: Callable[[Tensor], Any]
    """Takes ids [T] and does one lookup."""
    does: str = "whole"
    """Which of the setting's results it must equal."""
    layers: int = 1
    """Layers a call serves; times are for one."""
    token_bytes: int | None = None
    """Bytes read a token and layer; None: as many as ours reads."""


class Table:
    """Rows [V, D] or [V, E, D] of a setting, drawn; of quantised types in records."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        one, vocab = setting.experts == 1, setting.vocab_size
        shape = (setting.width,) if one else (setting.experts, setting.width)
        block = drawn(min(BLOCK, vocab), *shape, seed=1)
        self.layout = RecordLayout(
            vocab_size=vocab,
            layers=(0,),
            rows_per_token=None if one else setting.experts,
            width=setting.width,
            rows=setting.rows,
        )
        narrow = setting.rows in LARGEST
        stored = self.layout.encode({0: block}) if narrow else block.to(STORED[setting.rows])
        times = -(-vocab // len(stored)) + LAYERS
        self.memory = stored.repeat(times, *[1] * (stored.dim() - 1))
        """[at least V, ...] rows, or records [at least V, bytes] uint8."""
        self.views = self.layout.views(self.memory, 0) if narrow else (self.memory, None)
        """Rows [at least V, ...] as stored, and their scales where they have any."""
        self._block = len(stored)

    def near(self, layer: int) -> Near:
        """For the kernels, of a layer: the same rows at other addresses, so that no layer warms another's."""
        kind, scales = STORED[self.setting.rows], self.layout.scales_start
        stride, row_bytes = self.memory[0].nbytes, self.setting.width * kind.itemsize
        base = self.memory.data_ptr() + layer * self._block * stride
        where = (base, stride, self.setting.vocab_size, torch.empty(0, dtype=torch.int64), KINDS[kind])
        return Near(*where, row_bytes, scales if self.setting.rows in LARGEST else 0, self.memory)

    def wide(self, ids: Tensor) -> Tensor:
        """[T, D] or [T, E, D] float64."""
        return StoredRows(ids, *self.views).lookup().double()


class States:
    """Of T tokens: increments, hidden states, scale, router and its choice, drawn."""

    def __init__(self, setting: Setting, tokens: int) -> None:
        width, dtype = setting.width, setting.states
        self.increment_TD = drawn(tokens, width, dtype=dtype, seed=2)
        self.hidden_TD = drawn(tokens, width, dtype=dtype, seed=3)
        self.scale_D = drawn(width, dtype=dtype, seed=4)
        self.router_ED = (drawn(setting.experts, width, seed=5) / width**0.5).to(dtype)
        logits_TE = drawn(tokens, setting.experts, seed=6)
        top_TK, chosen_TK = logits_TE.topk(setting.top_k)
        sigma_TK = top_TK.sigmoid()
        self.routing = Routing(logits_TE, chosen_TK, sigma_TK / sigma_TK.sum(-1, keepdim=True))
        self.gain = norm_gain("rms", width)
        self.mixed_gain = self.gain / (2 * DEPTH) ** 0.5


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int) -> Tensor:
    """Numbers from a normal distribution."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
