"""What optimizers of row-sparse gradients share: their state, the step over all tables, decay that waits."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retoken.errors import ConfigError
from retoken.ops.row_update import (
    AdamRows,
    DecayRows,
    Noise,
    Rates,
    RowWiseRows,
    bias_corrections,
    is_small,
    noise_key,
    update_rows,
    use_huge_pages,
)
from retoken.optim.checks import check_gradient, check_rates, check_table, log_factor, named
from retoken.optim.state import load_state, zeros

BiasCorrection = Literal["row", "global"]
_STEP, _SETTLE = 0, 1
"""What a draw of random bits is for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowOrigin:
    """Where a part's rows are in the whole table: row r is token `first` + r * `stride`."""

    first: int = 0
    """Token id of row 0."""
    stride: int = 1
    """Token ids between neighbouring rows."""
    column: int = 0
    """Place of the first number among all that a token owns: modulator times width."""


class RowOptimizer(torch.optim.Optimizer, ABC):
    """Moves the rows that a step touched, and writes no other row and none of its state.

    Parameters are tables [V, ...] of float32, bfloat16 or float64, whose gradients are coalesced sparse COO
    tensors with one sparse dimension: the touched rows, each once. A row counts as touched in a step if it is
    in the gradient, also with zeros. State is float32 (float64 for float64 tables), whatever the rows are;
    bfloat16 rows are rounded stochastically, with bits that depend on (seed, step, parameter, token, column)
    and nothing else.

    Decoupled decay reaches touched rows in the step. Other rows wait: `settle` applies what they have
    pending, a factor (1 - lr_t * decay) for each step t, to rows about to be read, so what is read is what
    dense decay would have made of it. Without decay nothing waits, and nothing is kept for it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        bias_correction: BiasCorrection,
        seed: int,
        origins: Mapping[nn.Parameter, RowOrigin] | None,
    ) -> None:
        if bias_correction not in ("row", "global"):
            raise ConfigError(f"bias_correction is {bias_correction!r}; accepted: row, global")
        self.bias_correction: BiasCorrection = bias_correction
        self.seed = seed
        self.origins = dict(origins or {})
        self._lines: dict[tuple[float, float], Tensor] = {}
        self._seen: set[nn.Parameter] = set()
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add tables; rates are checked.

        Raises:
            ConfigError: A parameter that is no table, or a rate out of range.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        check_rates(group)
        for name, parameter in named(group):
            check_table(name, parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the rows that gradients name; a parameter without a gradient is left out, as by torch's AdamW.

        Raises:
            ConfigError: A gradient that is dense, not coalesced or of another shape.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = [(n, p, g) for g in self.param_groups for n, p in named(g) if p.grad is not None]
        for name, parameter, _ in moved:
            check_gradient(name, parameter)
        update_rows([self._prepare(parameter, group) for _, parameter, group in moved])
        return loss

    @torch.no_grad()
    def settle(self, parameter: nn.Parameter, ids: Tensor | None = None) -> None:
        """Apply the decay that rows `ids` [R] of a table, each once, have pending; None: all rows.

        To be called before rows are read between steps, and for all rows before a table is saved or handed
        over.
        """
        state = self.state.get(parameter, {})
        if "settled" not in state:
            return
        log_decay = float(state["log_decay"])
        job = DecayRows(
            weight=parameter.detach(),
            ids_R=(state["settled"] != log_decay).nonzero()[:, 0] if ids is None else ids,
            settled_V=state["settled"],
            log_decay=log_decay,
            noise=self._noise(parameter, _SETTLE),
        )
        update_rows([job])

    def settle_all(self) -> None:
        """`settle` every row of every table."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.settle(parameter)

    def init_state(self) -> None:
        """Give every table the state that its first step would give it."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._state_of(parameter, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but state keeps its own types, which are not the parameters'."""
        load_state(self, state_dict)

    @abstractmethod
    def _moments(self, parameter: nn.Parameter) -> dict[str, Callable[[], Tensor]]:
        """What the update keeps of a table besides counters: {name: how to make it}."""

    @abstractmethod
    def _job(
        self, parameter: nn.Parameter, state: dict[str, Tensor], rates: Rates, **shared: Any
    ) -> AdamRows | RowWiseRows:
        """The update of a table; `shared` are the fields that both kinds of job have."""

    @abstractmethod
    def _betas(self, group: dict[str, Any]) -> tuple[float, float]:
        """Decays of the first and second moment; the first is 0 where there is none."""

    def _prepare(self, parameter: nn.Parameter, group: dict[str, Any]) -> AdamRows | RowWiseRows:
        """The step's work on one table. Counts the step."""
        state = self._state_of(parameter, group)
        state["step"] += 1
        if "log_decay" in state:
            state["log_decay"] += log_factor(group)
        betas, by_row = self._betas(group), self.bias_correction == "row"
        lines = self._corrections(betas) if by_row else bias_corrections(*betas, int(state["step"]))
        rates = Rates(
            lr=float(group["lr"]),
            beta1=betas[0],
            beta2=betas[1],
            eps=group["eps"],
            corrections_K2=lines,
            log_decay=float(state["log_decay"]) if "log_decay" in state else 0.0,
        )
        gradient: Any = parameter.grad
        return self._job(
            parameter,
            state,
            rates,
            weight=parameter.detach(),
            ids_R=gradient._indices()[0],
            grad=gradient._values(),
            touches_V=state["touches"] if by_row else None,
            settled_V=state.get("settled"),
            noise=self._noise(parameter, _STEP),
        )

    def _corrections(self, betas: tuple[float, float]) -> Tensor:
        if betas not in self._lines:
            self._lines[betas] = bias_corrections(*betas)
        return self._lines[betas]

    def _state_of(self, parameter: nn.Parameter, group: dict[str, Any]) -> dict[str, Tensor]:
        """The state of a table, with whatever is still missing of it."""
        state = self.state[parameter]
        if parameter not in self._seen:
            self._seen.add(parameter)
            use_huge_pages(parameter.detach())
        rows = (parameter.shape[0],)
        missing = {"step": functools.partial(torch.zeros, ()), **self._moments(parameter)}
        if self.bias_correction == "row":
            missing["touches"] = lambda: zeros(rows, torch.int32, parameter.device).add_(int(state["step"]))
        if group["weight_decay"]:
            missing["log_decay"] = functools.partial(torch.zeros, (), dtype=torch.float64)
            missing["settled"] = lambda: zeros(rows, torch.float64, parameter.device)
        for name, make in missing.items():
            if name not in state:
                state[name] = make()
        return state

    def _has_room(self) -> bool:
        """Whether two moments of all tables may take whole huge pages, which makes updates faster."""
        return is_small(sum(8 * parameter.numel() for parameter in self._parameters()))

    def _noise(self, parameter: nn.Parameter, use: int) -> Noise | None:
        if parameter.dtype != torch.bfloat16:
            return None
        origin = self.origins.get(parameter, RowOrigin())
        place = next(i for i, p in enumerate(self._parameters()) if p is parameter)
        step = int(self.state[parameter]["step"])
        return Noise(
            key=noise_key(self.seed, step, place, use),
            first_row=origin.first,
            row_stride=origin.stride,
            first_column=origin.column,
        )

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]
