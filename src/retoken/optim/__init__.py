"""What moves the parameters: groups, learning-rate schedules, clipping and the optimizers."""

from retoken.optim.chained import ChainedOptimizer
from retoken.optim.clip import clip_by_norm_, total_norm
from retoken.optim.groups import GroupOptions, build_optimizer, parameter_groups, set_lr
from retoken.optim.row_adamw import RowAdamW
from retoken.optim.row_base import RowOrigin
from retoken.optim.row_wise import RowWiseAdam
from retoken.optim.schedule import Schedule, lr_factor

__all__ = [
    "ChainedOptimizer",
    "GroupOptions",
    "RowAdamW",
    "RowOrigin",
    "RowWiseAdam",
    "Schedule",
    "build_optimizer",
    "clip_by_norm_",
    "lr_factor",
    "parameter_groups",
    "set_lr",
    "total_norm",
]
