"""Checkpoints of a run on any number of processes: safetensors and JSON, whole or absent, never unpickled."""

from retoken.checkpoint.build import build_model, described, load_model
from retoken.checkpoint.chunks import Canonical, Chunk
from retoken.checkpoint.folders import Checkpoint, checked, is_checkpoint, newest, newest_path, read
from retoken.checkpoint.peers import Peers
from retoken.checkpoint.restore import Restorer
from retoken.checkpoint.saver import Saver
from retoken.checkpoint.state import host_copy

__all__ = [
    "Canonical",
    "Checkpoint",
    "Chunk",
    "Peers",
    "Restorer",
    "Saver",
    "build_model",
    "checked",
    "described",
    "host_copy",
    "is_checkpoint",
    "load_model",
    "newest",
    "newest_path",
    "read",
]
