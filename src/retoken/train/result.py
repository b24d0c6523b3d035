"""What a finished run leaves for others: what `results.json` says of a run, and a little more."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from retoken.checkpoint.files import read_json, write_json
from retoken.errors import CheckpointError


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """The outcome of one run."""

    name: str
    """The variant."""
    seed: int
    """Start values and data order."""
    val_loss: float
    """Nats per held-out token, without auxiliary losses."""
    val_bits_per_byte: float | None
    """Bits per byte of the held-out text; None where its tokens have no text."""
    val_tokens: int
    """Held-out tokens predicted."""
    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens trained on."""
    backbone_params: int
    """Parameters of the backbone, embeddings included."""
    table_params: int
    """Token-indexed parameters N_n."""
    stored_params: int
    """All parameters: backbone, tables, scales, routers."""
    flops_per_token: float
    """Training FLOPs per token."""
    train_seconds: float
    """Without evaluation and checkpoints, over all parts of the run."""
    tokens_per_second: float
    """tokens / train_seconds."""
    peak_memory_bytes: int
    """Largest resident size of the (first) process while it trained; of its last part, if it was resumed."""
    start_memory_bytes: int
    """Resident size before the model was built: interpreter and libraries."""
    out: str
    """The run's folder."""

    def write(self, path: Path) -> None:
        """As JSON, atomically."""
        write_json(path, {"format_version": 1, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> TrainResult:
        """What `write` wrote.

        Raises:
            CheckpointError: The file is something else.
        """
        found = read_json(path)
        missing = [field.name for field in fields(cls) if field.name not in found]
        if missing:
            raise CheckpointError(f"{path}: not a training result, {missing[0]} is missing")
        return cls(**{field.name: found[field.name] for field in fields(cls)})
