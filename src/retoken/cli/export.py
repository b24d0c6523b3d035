"""`retoken export`: a training checkpoint as the folder that `save_pretrained` would write."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from retoken.cli.options import as_json
from retoken.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from retoken.checkpoint.export import Exported, OnProgress

ACCEPTED = "a run folder with a checkpoint, or a checkpoint in one (RUN/checkpoints/step-N)"
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True, kw_only=True)
class Export:
    """A training checkpoint, written by any number of processes, as a model folder for `from_pretrained`.

    Tensors go from file to file in blocks: the model need not fit into memory.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run folder, for its newest checkpoint, or a checkpoint in it."""
    out: Path
    """Folder to make; it must not be there yet."""
    max_shard_size: str = "50GB"
    """Larger models are divided into files of at most this size, with an index: "5GB", "500MB"."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Export and print; returns the exit code."""
        size = self._size()
        if self.out.exists() or self.out.is_symlink():
            raise ConfigError(f"--out {self.out} exists; accepted: a folder to be made")
        from retoken.checkpoint import checked
        from retoken.checkpoint.export import export
        from retoken.eval.loading import tokenizer_for

        found = checked(find(self.checkpoint))
        tokenizer: Any = tokenizer_for(found.path)
        beside = tokenizer.save_pretrained if tokenizer is not None else lambda folder: None
        with _progress() as on_progress:
            done = export(found, self.out, max_shard_size=size, beside=beside, on_progress=on_progress)
        self._show(done, tokenizer is not None)
        return 0

    def _show(self, done: Exported, with_tokenizer: bool) -> None:
        if self.json:
            print(as_json({**done.to_dict(), "tokenizer": with_tokenizer}))
            return
        written_by = f"{done.world_size} process{'es' if done.world_size > 1 else ''}"
        files = f"{len(done.files)} file{'s' if len(done.files) > 1 else ''}"
        print(f"{done.out}: {done.checkpoint}, written by {written_by}")
        print(f"  {done.tensors:,} tensors, {done.bytes / 1e6:,.1f} MB, in {files}")
        if not with_tokenizer:
            print("  without a tokenizer: neither the run's folder nor its data has one")

    def _size(self) -> int:
        """Bytes."""
        found = re.fullmatch(r"(\d+)(KB|MB|GB|TB)", self.max_shard_size)
        size = int(found.group(1)) * _UNITS[found.group(2)] if found else 0
        if size == 0:
            raise ConfigError(f"--max-shard-size is {self.max_shard_size!r}; accepted: as 5GB or 500MB")
        return size


def find(path: Path) -> Path:
    """The checkpoint folder that `path` stands for.

    Raises:
        CheckpointError: There is none.
    """
    from retoken.checkpoint import is_checkpoint, newest_path
    from retoken.train.folder import RunFolder

    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path} is no folder; accepted: {ACCEPTED}")
    newest = path if is_checkpoint(path) else newest_path(RunFolder(path).checkpoints)
    if newest is None:
        raise CheckpointError(f"checkpoint {path} holds no training checkpoint; accepted: {ACCEPTED}")
    return newest


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("writing", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
