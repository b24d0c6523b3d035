"""`retoken scaling`: a scaling study, from its plan to its laws and figures."""

from __future__ import annotations

from typing import Annotated

import tyro

from retoken.cli.scaling_fit import ScalingFit
from retoken.cli.scaling_plan import ScalingPlan
from retoken.cli.scaling_plot import ScalingPlot
from retoken.cli.scaling_predict import ScalingPredict
from retoken.cli.scaling_run import ScalingRun

Scaling = (
    Annotated[ScalingPlan, tyro.conf.subcommand("plan")]
    | Annotated[ScalingRun, tyro.conf.subcommand("run")]
    | Annotated[ScalingFit, tyro.conf.subcommand("fit")]
    | Annotated[ScalingPredict, tyro.conf.subcommand("predict")]
    | Annotated[ScalingPlot, tyro.conf.subcommand("plot")]
)
"""`retoken scaling WHAT`."""
