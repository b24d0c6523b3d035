"""What moves the parameters: groups, learning-rate schedules and the optimizer."""

from retoken.optim.clip import clip_by_norm_, total_norm
from retoken.optim.groups import GroupOptions, build_optimizer, parameter_groups, set_lr
from retoken.optim.schedule import Schedule, lr_factor

__all__ = [
    "GroupOptions",
    "Schedule",
    "build_optimizer",
    "clip_by_norm_",
    "lr_factor",
    "parameter_groups",
    "set_lr",
    "total_norm",
]
