"""AdamW on the rows a step touched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from retoken.ops.row_update import AdamRows, Rates
from retoken.optim.row_base import BiasCorrection, RowOptimizer, RowOrigin
from retoken.optim.state import zeros_like_rows


class RowAdamW(RowOptimizer):
    """AdamW whose moments are lazy: a row's decay in the steps that touch it, not in between.

    Where every step touches every row this is torch's AdamW, to rounding. Elsewhere it differs on purpose:
    dense Adam goes on moving a row that no batch reads, by lr * m / sqrt(v) a step while both decay. With x =
    beta1 / sqrt(beta2) below 1 that tail is 1 / (1 - x) times the first step (13 times for betas 0.9, 0.95);
    with the paper's (0.95, 0.9) x is above 1 and the tail ends only when sqrt(v) has come down to eps. Here a
    row rests.

    `bias_correction`:

    - "row": n counts the steps that touched the row. Its moments are averages over its own gradients, and
      its first touch moves each number by about lr, whenever it comes. Costs 4 bytes a row.
    - "global": n counts steps, as in dense AdamW. A row first touched late then starts from
      m = (1 - beta1) g and sqrt(v) = sqrt(1 - beta2) |g| uncorrected: with betas (0.9, 0.95) it moves by
      0.45 lr, with the paper's by 0.16 lr, and no tail makes up for it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        bias_correction: BiasCorrection = "row",
        seed: int = 0,
        origins: Mapping[nn.Parameter, RowOrigin] | None = None,
    ) -> None:
        """Options as torch's AdamW.

        Args:
            params: Tables, or groups of them.
            lr, betas, eps, weight_decay: Of groups that do not say.
            bias_correction: "row" or "global", see above.
            seed: Of stochastic rounding.
            origins: {table: where its rows are in the whole table}, of tables that are parts of one.

        Raises:
            ConfigError: A value that is not accepted, or a parameter that is no table.
        """
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, bias_correction=bias_correction, seed=seed, origins=origins)

    def _moments(self, parameter: nn.Parameter) -> dict[str, Callable[[], Tensor]]:
        def make() -> Tensor:
            return zeros_like_rows(parameter, huge_pages=self._has_room())

        return {"exp_avg": make, "exp_avg_sq": make}

    def _betas(self, group: dict[str, Any]) -> tuple[float, float]:
        return group["betas"]

    def _job(
        self, parameter: nn.Parameter, state: dict[str, Tensor], rates: Rates, **shared: Any
    ) -> AdamRows:
        return AdamRows(exp_avg=state["exp_avg"], exp_avg_sq=state["exp_avg_sq"], rates=rates, **shared)
