"""What is attached: the configurations of the two modulators, and the arithmetic of their sizes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from retoken.errors import ConfigError

FORMAT_VERSION = 1
Norm = Literal["rms", "l2"]
Index = Literal["token", "bigram", "token_bigram"]
RouterInput = Literal["post_attention", "block_input"]


def _require(ok: bool, option: str, found: object, accepted: str) -> None:
    if not ok:
        raise ConfigError(f"{option} is {found!r}; accepted: {accepted}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


@dataclass(frozen=True, kw_only=True)
class TableConfig(ABC):
    """What everything that carries a table shares. A subclass is known by its `type`; this is none."""

    type: ClassVar[str] = ""
    known: ClassVar[dict[str, Any]] = {}
    """{type: the subclass of that name}, of all that have been defined."""
    zero_rows: ClassVar[bool] = False
    """Whether rows may start at zero."""

    layers: tuple[int, ...] | None = None
    """Backbone layers that carry a table; None: every layer that can."""
    init_scale: float = 1.0
    """Start value of every element of the scale s; 0 starts as the plain backbone."""
    init_std: float = 0.02
    """Standard deviation of the normal the rows start from. Rows are normalised, so this only sets
    how far one optimizer step turns a row."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.type:
            cls.known[cls.type] = cls

    def __post_init__(self) -> None:
        _require(_is_number(self.init_scale), "init_scale", self.init_scale, "a number")
        std, accepted = self.init_std, "0 or above" if self.zero_rows else "above 0"
        ok = _is_number(std) and (std > 0 or (std == 0 and self.zero_rows))
        _require(ok, "init_std", std, accepted)
        if self.layers is not None:
            object.__setattr__(self, "layers", self._checked_layers(self.layers))

    @staticmethod
    def _checked_layers(layers: Any) -> tuple[int, ...]:
        ok = isinstance(layers, list | tuple | range) and all(type(i) is int and i >= 0 for i in layers)
        _require(ok and len(layers) > 0, "layers", layers, "a list of layer numbers from 0, or None for all")
        _require(len(set(layers)) == len(layers), "layers", layers, "each layer once")
        return tuple(sorted(layers))

    @property
    def rows_per_token(self) -> int:
        """Rows a token owns in one layer's table."""
        return 1

    @property
    def by_token(self) -> bool:
        """Whether row x of a table is token x's: what folding, pruning and inspecting build on."""
        return True

    @property
    def sums_rows(self) -> bool:
        """Whether a position reads several rows, which are used as their sum."""
        return False

    @property
    def activation(self) -> float:
        """rho: rows used per token over rows owned (Sec. 3.4)."""
        return 1.0

    def table_rows(self, vocab_size: int) -> int:
        """Rows of one layer's table, or groups of `rows_per_token` of them."""
        return vocab_size

    @property
    def _delay(self) -> int:
        return 0

    def table_layers(self, num_layers: int) -> tuple[int, ...]:
        """Layers that carry a table in a backbone of `num_layers`; the last l_d have none (Eq. 16).

        Raises:
            ConfigError: a layer, or the layer where its result would land, is not in the backbone.
        """
        delay = self._delay
        _require(delay < num_layers, "injection_delay", delay, f"below the backbone's {num_layers} layers")
        if self.layers is None:
            return tuple(range(num_layers - delay))
        last = num_layers - 1 - delay
        _require(
            self.layers[-1] <= last,
            "layers",
            list(self.layers),
            f"0..{last} in a backbone of {num_layers} layers"
            + (f" with a delay of {delay}" if delay else ""),
        )
        return self.layers

    def table_params(self, vocab_size: int, hidden_size: int, num_layers: int) -> int:
        """Token-indexed parameters N_n: table rows times their width, over all layers that carry one."""
        rows = self.rows_per_token * self.table_rows(vocab_size)
        return len(self.table_layers(num_layers)) * rows * hidden_size

    def other_params(self, hidden_size: int, num_layers: int) -> int:
        """Modulator parameters that are not rows: scales, and routers where there are any."""
        return len(self.table_layers(num_layers)) * hidden_size

    @abstractmethod
    def flops_per_token(self, hidden_size: int, num_layers: int) -> float:
        """FLOPs of a forward pass per token; the lookup moves memory and computes nothing."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy; `config_from_dict` turns it back."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"type": self.type, "format_version": FORMAT_VERSION, **values}


@dataclass(frozen=True, kw_only=True)
class IndexedConfig(TableConfig):
    """What the paper's two modulators share: their rows may be looked up by more than the token."""

    norm: Norm = "rms"
    """How a row is normalised: "l2" as printed (Eq. 1), or "rms" = l2 * sqrt(D), which the paper cites."""
    eps: float = 1e-6
    """Added to the row's L2 norm, so that a zero row stays zero instead of dividing by zero."""
    index: Index = "token"
    """Whose row a position reads: the current token's, that of a hash of it and the token before it, or the
    sum of both."""
    index_size: float = 1.0
    """Rows for hashed bigrams over the vocabulary's size. Different bigrams may share a row."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.norm in get_args(Norm), "norm", self.norm, " or ".join(get_args(Norm)))
        _require(_is_number(self.eps) and self.eps > 0, "eps", self.eps, "a number above 0")
        _require(self.index in get_args(Index), "index", self.index, " or ".join(get_args(Index)))
        size = self.index_size
        _require(_is_number(size) and 0 < size < math.inf, "index_size", size, "a number above 0")
        _require(self.index != "token" or size == 1, "index_size", size, "1 with index 'token'")

    @property
    def by_token(self) -> bool:
        """Whether row x is token x's."""
        return self.index == "token"

    @property
    def sums_rows(self) -> bool:
        """Whether a position reads several rows, which are used as their sum."""
        return self.index == "token_bigram"

    @property
    def folds_rows(self) -> bool:
        """Whether a row decides alone what it adds, so that scale and norm can be worked into it (Eq. 8)."""
        return not self.sums_rows

    def table_rows(self, vocab_size: int) -> int:
        """The vocabulary's, or `index_size` times as many, or both together."""
        hashed = max(1, round(self.index_size * vocab_size))
        return vocab_size + hashed if self.sums_rows else hashed

    def to_dict(self) -> dict[str, Any]:
        """As the base; without the index where it is the token, so that earlier versions read it."""
        values = super().to_dict()
        return {k: v for k, v in values.items() if not (self.by_token and k in ("index", "index_size"))}


@dataclass(frozen=True, kw_only=True)
class ReTokenConfig(IndexedConfig):
    """ReToken (JTok): each layer's MLP increment is gated by p = 1 + s * Norm(E[x]) (Eq. 1-2)."""

    type: ClassVar[str] = "retoken"

    def flops_per_token(self, hidden_size: int, num_layers: int) -> float:
        """4d a layer: normalise, scale, add one, gate (Sec. 3.1)."""
        return 4.0 * hidden_size * len(self.table_layers(num_layers))

    @classmethod
    def paper(cls) -> ReTokenConfig:
        """The formula as printed: L2 norm, and s starting at 1 (the paper gives no start values)."""
        return cls(norm="l2", init_scale=1.0, init_std=0.02)


@dataclass(frozen=True, kw_only=True)
class MoRTConfig(IndexedConfig):
    """MoRT (JTok-M): a router mixes K of a token's n_e rows and adds them to the residual (Eq. 3-6, 16)."""

    type: ClassVar[str] = "mort"

    num_modulators: int = 5
    """n_e: rows a token owns in each layer."""
    top_k: int = 3
    """K: rows mixed per token and layer."""
    router_input: RouterInput = "post_attention"
    """What the router reads: what the MLP reads (Eq. 3), or the block's normed input (JTok), known early."""
    injection_delay: int = 0
    """l_d: layers between reading the rows and adding them (Eq. 16)."""
    balance_coef: float = 1e-4
    """lambda, the weight of the load-balancing loss (Eq. 21)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        n, k = self.num_modulators, self.top_k
        _require(type(n) is int and n >= 1, "num_modulators", n, "an integer from 1")
        _require(type(k) is int and 1 <= k <= n, "top_k", k, f"1..{n} (num_modulators is {n})")
        accepted = get_args(RouterInput)
        _require(self.router_input in accepted, "router_input", self.router_input, " or ".join(accepted))
        delay = self.injection_delay
        _require(type(delay) is int and delay >= 0, "injection_delay", delay, "an integer from 0")
        coef = self.balance_coef
        _require(_is_number(coef) and coef >= 0, "balance_coef", coef, "a number from 0")

    @property
    def folds_rows(self) -> bool:
        """As the base; and only one is chosen, whose weight is then exactly 1."""
        return super().folds_rows and self.top_k == 1

    @property
    def rows_per_token(self) -> int:
        """n_e rows."""
        return self.num_modulators

    @property
    def _delay(self) -> int:
        return self.injection_delay

    @property
    def activation(self) -> float:
        """rho = K / n_e (Sec. 3.4)."""
        return self.top_k / self.num_modulators

    def other_params(self, hidden_size: int, num_layers: int) -> int:
        """Scales [D] and routers [E, D]."""
        return len(self.table_layers(num_layers)) * hidden_size * (1 + self.num_modulators)

    def flops_per_token(self, hidden_size: int, num_layers: int) -> float:
        """Eq. 7: router 2 d n_e, mixture 2 d K, and 5d for norm (3), scale and addition, a layer."""
        per_layer = hidden_size * (2 * self.num_modulators + 2 * self.top_k + 5)
        return float(per_layer * len(self.table_layers(num_layers)))

    @classmethod
    def paper(cls) -> MoRTConfig:
        """The formula as printed: L2 norm, n_e 5, K 3, s starting at 1 (the paper gives no start values)."""
        return cls(norm="l2", init_scale=1.0, init_std=0.02)

    @classmethod
    def by_token_and_bigram(cls, size: float = 5.0) -> MoRTConfig:
        """The best use of tables found (studies/matched), with `size` times ReToken's numbers in them.

        In every layer one row of the token and one of a hash of the last two tokens are summed, normalised,
        scaled and added; there is no router.

        Raises:
            ConfigError: the size is not above 1, which rows by token alone take.
        """
        _require(_is_number(size) and size > 1, "size", size, "above 1")
        only_one: dict[str, Any] = {"num_modulators": 1, "top_k": 1, "balance_coef": 0.0}
        return cls(index="token_bigram", index_size=size - 1, **only_one)


ModulatorConfig = TableConfig
"""Anything that can be attached: the paper's two modulators, and what they are compared with."""


def require_modulator(config: TableConfig, what: str) -> None:
    """Refuse rivals, whose rows are used in ways of their own.

    Raises:
        ConfigError: what is attached is no modulator of the paper's.
    """
    if not isinstance(config, IndexedConfig):
        raise ConfigError(f"{what}: what is attached has type {config.type!r}; accepted: retoken or mort")


def require_foldable(config: TableConfig) -> None:
    """Refuse what has nothing that is constant at inference.

    Raises:
        ConfigError: no modulator of the paper's, or a gate by the norm of a sum.
    """
    require_modulator(config, "fold")
    if isinstance(config, ReTokenConfig) and not config.folds_rows:
        raise ConfigError(
            f"fold: retoken with index {config.index!r} gates by the norm of a sum, which no row holds; "
            "accepted: index 'token' or 'bigram'; mort with any"
        )


def require_by_token(config: TableConfig, what: str) -> None:
    """Refuse what builds on row x being token x's.

    Raises:
        ConfigError: rows of what is attached are found otherwise, or it is no modulator of the paper's.
    """
    if not config.by_token:
        found = f"index {config.index!r}" if isinstance(config, IndexedConfig) else f"type {config.type!r}"
        raise ConfigError(
            f"{what}: what is attached has {found}; accepted: retoken or mort with index 'token'"
        )


def config_from_dict(values: dict[str, Any]) -> ModulatorConfig:
    """The configuration `to_dict` wrote.

    Raises:
        ConfigError: not such a dict, an unknown type or option, or a newer format_version.
    """
    _require(isinstance(values, dict), "modulator config", values, "a dict written by to_dict")
    kind, version = values.get("type"), values.get("format_version")
    known = TableConfig.known
    _require(kind in known, "modulator type", kind, ", ".join(known))
    _require(
        type(version) is int and 1 <= version <= FORMAT_VERSION,
        "format_version",
        version,
        f"1..{FORMAT_VERSION}",
    )
    cls = known[str(kind)]
    rest = {k: v for k, v in values.items() if k not in ("type", "format_version")}
    unknown = sorted(set(rest) - {f.name for f in fields(cls)})
    _require(not unknown, f"option of {kind}", unknown, ", ".join(f.name for f in fields(cls)))
    return cls(**rest)
