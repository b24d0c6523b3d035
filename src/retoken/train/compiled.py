"""torch.compile, where it is wanted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from retoken.errors import ConfigError
from retoken.train.config import TrainConfig

COMPILERS = ("c++", "g++", "clang++")


def compile_for(config: TrainConfig, model: nn.Module) -> Callable[..., Any]:
    """`model`, or its compiled form with the same parameters.

    Raises:
        ConfigError: Compilation is asked for on a CPU without a C++ compiler.
    """
    if config.compile == "off":
        return model
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and not any(shutil.which(name) for name in COMPILERS):
        if config.compile == "on":
            raise ConfigError(
                f"compile is 'on' without a C++ compiler ({', '.join(COMPILERS)}); accepted here: off, auto"
            )
        return model
    return cast(Callable[..., Any], torch.compile(model))
