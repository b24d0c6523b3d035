"""Training: one loop, its checkpoints, its metrics."""

from retoken.train.config import TrainConfig
from retoken.train.result import TrainResult

__all__ = ["TrainConfig", "TrainResult"]
