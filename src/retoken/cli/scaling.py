"""`retoken scaling`: laws of loss, fitted, used and drawn."""

from __future__ import annotations

from typing import Annotated

import tyro

from retoken.cli.scaling_fit import ScalingFit
from retoken.cli.scaling_plot import ScalingPlot
from retoken.cli.scaling_predict import ScalingPredict

Scaling = (
    Annotated[ScalingFit, tyro.conf.subcommand("fit")]
    | Annotated[ScalingPredict, tyro.conf.subcommand("predict")]
    | Annotated[ScalingPlot, tyro.conf.subcommand("plot")]
)
"""`retoken scaling WHAT`."""
