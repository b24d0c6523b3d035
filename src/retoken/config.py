"""What is attached: the configurations of the two modulators, and the arithmetic of their sizes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, get_args

from retoken.errors import ConfigError

FORMAT_VERSION = 1
Norm = Literal["rms", "l2"]
RouterInput = Literal["post_attention", "block_input"]


def _require(ok: bool, option: str, found: object, accepted: str) -> None:
    if not ok:
        raise ConfigError(f"{option} is {found!r}; accepted: {accepted}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


@dataclass(frozen=True, kw_only=True)
class _TableConfig:
    """What both modulators share. Not constructed itself."""

    type: ClassVar[str]

    norm: Norm = "rms"
    """How a row is normalised: "l2" as printed (Eq. 1), or "rms" = l2 * sqrt(D), which the paper cites."""
    eps: float = 1e-6
    """Added to the row's L2 norm, so that a zero row stays zero instead of dividing by zero."""
    layers: tuple[int, ...] | None = None
    """Backbone layers that carry a table; None: every layer that can."""
    init_scale: float = 1.0
    """Start value of every element of the scale s; 0 starts as the plain backbone."""
    init_std: float = 0.02
    """Standard deviation of the normal the rows start from. Rows are normalised, so this only sets
    how far one optimizer step turns a row."""

    def __post_init__(self) -> None:
        _require(self.norm in get_args(Norm), "norm", self.norm, " or ".join(get_args(Norm)))
        _require(_is_number(self.eps) and self.eps > 0, "eps", self.eps, "a number above 0")
        _require(_is_number(self.init_scale), "init_scale", self.init_scale, "a number")
        _require(_is_number(self.init_std) and self.init_std > 0, "init_std", self.init_std, "above 0")
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
        return len(self.table_layers(num_layers)) * self.rows_per_token * vocab_size * hidden_size

    def other_params(self, hidden_size: int, num_layers: int) -> int:
        """Modulator parameters that are not rows: scales, and routers where there are any."""
        return len(self.table_layers(num_layers)) * hidden_size

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy; `config_from_dict` turns it back."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"type": self.type, "format_version": FORMAT_VERSION, **values}


@dataclass(frozen=True, kw_only=True)
class ReTokenConfig(_TableConfig):
    """ReToken (JTok): each layer's MLP increment is gated by p = 1 + s * Norm(E[x]) (Eq. 1-2)."""

    type: ClassVar[str] = "retoken"

    @classmethod
    def paper(cls) -> ReTokenConfig:
        """The formula as printed: L2 norm, and s starting at 1 (the paper gives no start values)."""
        return cls(norm="l2", init_scale=1.0, init_std=0.02)


@dataclass(frozen=True, kw_only=True)
class MoRTConfig(_TableConfig):
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

    @classmethod
    def paper(cls) -> MoRTConfig:
        """The formula as printed: L2 norm, n_e 5, K 3, s starting at 1 (the paper gives no start values)."""
        return cls(norm="l2", init_scale=1.0, init_std=0.02)


ModulatorConfig = ReTokenConfig | MoRTConfig
_TYPES: dict[str, type[ReTokenConfig] | type[MoRTConfig]] = {c.type: c for c in (ReTokenConfig, MoRTConfig)}


def config_from_dict(values: dict[str, Any]) -> ModulatorConfig:
    """The configuration `to_dict` wrote.

    Raises:
        ConfigError: not such a dict, an unknown type or option, or a newer format_version.
    """
    _require(isinstance(values, dict), "modulator config", values, "a dict written by to_dict")
    kind, version = values.get("type"), values.get("format_version")
    _require(kind in _TYPES, "modulator type", kind, " or ".join(_TYPES))
    _require(
        type(version) is int and 1 <= version <= FORMAT_VERSION,
        "format_version",
        version,
        f"1..{FORMAT_VERSION}",
    )
    cls = _TYPES[str(kind)]
    rest = {k: v for k, v in values.items() if k not in ("type", "format_version")}
    unknown = sorted(set(rest) - {f.name for f in fields(cls)})
    _require(not unknown, f"option of {kind}", unknown, ", ".join(f.name for f in fields(cls)))
    return cls(**rest)
