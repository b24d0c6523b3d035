"""What rivals share: a configuration with a size, a module with a table, and hooks in the backbone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retoken.attach.families import Anatomy
from retoken.attach.sites import KEYWORD, Hook, LayerSite, SiteHook
from retoken.config import TableConfig
from retoken.errors import AttachError, ConfigError
from retoken.nn import ForwardContext, TableFactory, TokenTable
from retoken.nn.index import Head, NgramIndex
from retoken.nn.modulator import accept_checkpoint_keys

EPS = 1e-6
"""Of the RMS norms that rivals have."""


class Maker:
    """Makes what a rival holds, all on one device and of one type."""

    def __init__(self, table: TableFactory, device: torch.device | None, dtype: torch.dtype | None) -> None:
        self._table, self._device, self._dtype = table, device, dtype

    def table(self, rows: int, width: int, std: float) -> TokenTable:
        """A table whose rows start with that standard deviation."""
        return self._table((rows, width), std, self._device, self._dtype)

    def parameter(self, *shape: int) -> nn.Parameter:
        """A parameter of that shape, without values yet."""
        return nn.Parameter(torch.empty(shape, device=self._device, dtype=self._dtype))


@dataclass(frozen=True, kw_only=True)
class RivalConfig(TableConfig):
    """What all rivals can be told. Not constructed itself."""

    zero_rows: ClassVar[bool] = True
    resumes: ClassVar[bool] = True
    """Whether ids are all that a position needs of those before it, so that a pass can go on from a cache."""

    size: float = 1.0
    """Numbers in all tables over ReToken's on the same backbone, L V D: 1 stores as much as ReToken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.size, int | float) or not 0 < self.size < math.inf:
            raise ConfigError(f"size is {self.size!r}; accepted: a number above 0")

    @property
    def by_token(self) -> bool:
        """False: serving and sharding know the paper's two modulators only."""
        return False

    def heads(self, vocab_size: int, hidden_size: int, num_layers: int) -> tuple[Head, ...]:
        """The hashes that rows are looked up by; none: by the token."""
        return ()

    def index_for(self, vocab_size: int, hidden_size: int, num_layers: int) -> NgramIndex | None:
        """Which rows positions read; None: the token's."""
        heads = self.heads(vocab_size, hidden_size, num_layers)
        return NgramIndex(heads, self.resumes) if heads else None

    @abstractmethod
    def build(self, anatomy: Anatomy, layer: int, make: Maker) -> Rival:
        """The module that a layer carries."""

    @abstractmethod
    def hooks(self, anatomy: Anatomy, sites: list[LayerSite]) -> list[Hook]:
        """Where it acts in the backbone."""


@dataclass(frozen=True, kw_only=True)
class NgramConfig(RivalConfig):
    """Rivals whose rows are looked up by hashes of the last tokens. Not constructed itself.

    With H hashes a row is 1 / H as wide as the model, and a position's H rows lie side by side.
    """

    orders: ClassVar[tuple[int, ...]]
    """The n of its n-grams."""

    hashes: int = 1
    """Hashes of each order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.hashes) is not int or self.hashes < 1:
            raise ConfigError(f"hashes is {self.hashes!r}; accepted: an integer from 1")

    def _rows(self, vocab_size: int, num_layers: int) -> int:
        """Of one hash, so that the tables of all layers hold size * L * V * D numbers."""
        rows = self.size * num_layers * vocab_size / len(self.table_layers(num_layers))
        return max(1, round(rows))

    def table_params(self, vocab_size: int, hidden_size: int, num_layers: int) -> int:
        """Rows of all hashes and layers times their width."""
        return len(self.table_layers(num_layers)) * self._rows(vocab_size, num_layers) * hidden_size

    def heads(self, vocab_size: int, hidden_size: int, num_layers: int) -> tuple[Head, ...]:
        """As many hashes of each order, one behind the other in the table; all layers hash alike."""
        rows = self._rows(vocab_size, num_layers)
        kinds = [(order, salt) for order in self.orders for salt in range(self.hashes)]
        return tuple(Head(order, salt, rows, number * rows) for number, (order, salt) in enumerate(kinds))

    def make_table(self, anatomy: Anatomy, make: Maker) -> TokenTable:
        """A layer's table.

        Raises:
            ConfigError: the hashes do not divide the model's width.
        """
        heads, width = len(self.orders) * self.hashes, anatomy.hidden_size
        if width % heads:
            raise ConfigError(f"hashes is {self.hashes}; accepted: a divisor of {width} / {len(self.orders)}")
        rows = self._rows(anatomy.vocab_size, len(anatomy.layers))
        return make.table(heads * rows, width // heads, self.init_std)


class Rival(nn.Module, ABC):
    """One layer's table and what turns its rows into what is added."""

    table: TokenTable

    def __init__(self, table: TokenTable) -> None:
        super().__init__()
        self.table = table
        self.register_load_state_dict_pre_hook(accept_checkpoint_keys)

    @abstractmethod
    def reset_parameters(self) -> None:
        """Start values of all but the table, by `nn.init`: transformers keeps that off loaded values."""


class RivalHook(SiteHook):
    """Acts at one layer with the module of its own or of another layer, and finds the rows of the pass."""

    def __init__(self, site: LayerSite, home: LayerSite | None = None) -> None:
        super().__init__(site)
        self.home = home or site

    @property
    def rival(self) -> Any:
        """The module; looked up anew at the start of each pass."""
        return self.home.modulator

    def rows(self, context: ForwardContext, hidden: Tensor) -> Tensor:
        """The rows of this pass, those of a position side by side, in the type of hidden states [B, S, D]."""
        index, fetched = context.index_for(hidden), context.fetched(self.home.layer)
        return self.rival.table.lookup(index, fetched).flatten(2).to(hidden.dtype)


def entered(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ForwardContext]:
    """A decoder layer's hidden states [B, S, D] and this pass's context, out of its arguments.

    Raises:
        AttachError: the layer was called without its model.
    """
    if KEYWORD not in kwargs:
        raise AttachError("a decoder layer was called without its model, which knows the token ids")
    return args[0] if args else kwargs["hidden_states"], kwargs[KEYWORD]


def enter_with(hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Those arguments with other hidden states."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, kwargs | {"hidden_states": hidden}


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / RMS(x) * weight over the last dimension."""
    return F.rms_norm(x, x.shape[-1:], weight.to(x.dtype), EPS)
