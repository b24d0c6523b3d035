"""What the paper's modulators are compared with: other uses of rows that are known from the ids, one a file.

They are trained, saved, loaded and counted like the paper's two. Nothing here is served from host or disk.
"""

from retoken.attach.rivals.base import Maker, Rival, RivalConfig
from retoken.attach.rivals.bigram import BigramConfig
from retoken.attach.rivals.engram import EngramConfig
from retoken.attach.rivals.over_tokenized import OverTokenizedConfig
from retoken.attach.rivals.per_layer import PerLayerConfig
from retoken.attach.rivals.value import ValueConfig

__all__ = [
    "BigramConfig",
    "EngramConfig",
    "Maker",
    "OverTokenizedConfig",
    "PerLayerConfig",
    "Rival",
    "RivalConfig",
    "ValueConfig",
]
