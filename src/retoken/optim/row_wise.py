"""Row-wise Adam: one scalar of state a row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from retoken.ops.row_update import Rates, RowWiseRows
from retoken.optim.row_base import BiasCorrection, RowOptimizer, RowOrigin
from retoken.optim.state import zeros_like_rows


class RowWiseAdam(RowOptimizer):
    """RMSprop with one second moment a row: w -= lr * g / (sqrt(v) + eps), v averages the row's mean g^2.

    FBGEMM's row-wise optimizers factor the second moment so; Adafactor (Shazeer & Stern 2018) keeps its
    columns, too. There is no first moment. A row here is what Norm is taken of, [D]: a token has one scalar,
    under MoRT one for each of its modulators, as those that were not chosen would make the others' gradients
    look small. State is 4 / D bytes a number, and 4 bytes a token for `bias_correction` "row", which is as in
    `RowAdamW`, as are the lazy moment, decay and stochastic rounding.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        bias_correction: BiasCorrection = "row",
        seed: int = 0,
        origins: Mapping[nn.Parameter, RowOrigin] | None = None,
    ) -> None:
        """Options as `RowAdamW`'s, with `beta2` alone.

        Raises:
            ConfigError: A value that is not accepted, or a parameter that is no table.
        """
        defaults = {"lr": lr, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, bias_correction=bias_correction, seed=seed, origins=origins)

    def _moments(self, parameter: nn.Parameter) -> dict[str, Callable[[], Tensor]]:
        return {"mean_sq": functools.partial(zeros_like_rows, parameter, parameter.shape[:-1])}

    def _betas(self, group: dict[str, Any]) -> tuple[float, float]:
        return 0.0, group["beta2"]

    def _job(
        self, parameter: nn.Parameter, state: dict[str, Tensor], rates: Rates, **shared: Any
    ) -> RowWiseRows:
        return RowWiseRows(mean_sq=state["mean_sq"], rates=rates, **shared)
