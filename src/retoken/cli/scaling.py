"""`retoken scaling`: a scaling study, from its plan to its figures."""

from __future__ import annotations

from typing import Annotated

import tyro

from retoken.cli.scaling_plan import ScalingPlan
from retoken.cli.scaling_run import ScalingRun

Scaling = (
    Annotated[ScalingPlan, tyro.conf.subcommand("plan")] | Annotated[ScalingRun, tyro.conf.subcommand("run")]
)
"""`retoken scaling WHAT`."""
