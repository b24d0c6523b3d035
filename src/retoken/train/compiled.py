"""torch.compile, where it is wanted and earns its time back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from retoken.errors import ConfigError
from retoken.presets import Counts
from retoken.train.config import TrainConfig

COMPILERS = ("c++", "g++", "clang++")
# One core trains dense backbones at 5e10 FLOPs a second, compiled ones 4-7 % faster; compiling takes the
# better part of a minute. From about 20 minutes on it pays (`retoken bench train`).
WORTH_FLOPS = 6e13
# On a GPU compilation is the custom for runs of any length; not measured here.
WORTH_GPU_STEPS = 1000


def compile_for(config: TrainConfig, model: nn.Module, counts: Counts) -> Callable[..., Any]:
    """`model`, or its compiled form with the same parameters.

    "auto" decides by the run's options and the backbone alone: variants of one comparison, and the parts of a
    resumed run, decide alike. Mixtures, whose experts' shapes follow the data, it leaves as they are.

    Raises:
        ConfigError: Compilation is asked for on a CPU without a C++ compiler.
    """
    device = next(model.parameters()).device.type
    if config.compile == "off" or (config.compile == "auto" and not pays(config, counts, device)):
        return model
    if device == "cpu" and not has_compiler():
        if config.compile == "auto":
            return model
        raise ConfigError(
            f"compile is 'on' without a C++ compiler ({', '.join(COMPILERS)}); accepted here: off, auto"
        )
    return cast(Callable[..., Any], torch.compile(model))


def has_compiler() -> bool:
    """Whether there is what torch.compile makes a CPU's code with."""
    return any(shutil.which(name) for name in COMPILERS)


def pays(config: TrainConfig, counts: Counts, device: str) -> bool:
    """Whether a run of this length should earn the compilation back."""
    if counts.activated_params < counts.backbone_params:
        return False
    if device == "cuda":
        return config.total_steps >= WORTH_GPU_STEPS
    work = config.total_steps * config.tokens_per_step * counts.backbone_flops_per_token
    return work >= WORTH_FLOPS
