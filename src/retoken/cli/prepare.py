"""`retoken prepare`: text to token shards."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from retoken.cli.options import as_json
from retoken.data.config import PrepareConfig
from retoken.data.manifest import Manifest
from retoken.data.prepare import prepare
from retoken.data.progress import Reporter


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepare(PrepareConfig):
    """Turn text into token shards, split by document into train and held-out.

    An interrupted preparation goes on where it stopped when the same command is given again, and a finished
    one is left as it is. The bytes written do not depend on the number of workers or on interruptions.
    """

    json: bool = False
    """Print the manifest as one JSON object."""

    def run(self) -> int:
        """Prepare, and print what is there now; returns the exit code."""
        started = monotonic()
        with Bar() as bar:
            manifest = prepare(self, bar)
        if self.json:
            print(as_json(asdict(manifest)))
        else:
            print(_summary(self, manifest, monotonic() - started))
        return 0


class Bar(Reporter):
    """Progress bars on a terminal; on anything else only the notes, on stderr."""

    def __init__(self) -> None:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
        self._bars = Progress(
            TextColumn("{task.description}"),
            *columns,
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not sys.stderr.isatty(),
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bar:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(f"retoken prepare: {text}", markup=False, highlight=False, soft_wrap=True)

    def update(self, stage: str, done: int, total: int | None) -> None:
        """Move a stage's bar; a stage whose end nobody knows pulses."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)


def _summary(config: PrepareConfig, manifest: Manifest, seconds: float) -> str:
    lines = [f"{config.out}: vocabulary {manifest.vocab_size:,}, {manifest.dtype}, {seconds:.1f} s"]
    for name, split in manifest.splits.items():
        sizes = f"{split.tokens:>13,} tokens {split.documents:>11,} documents {split.bytes:>15,} bytes"
        ratio = f"{split.bytes / split.tokens:.2f} bytes/token"
        lines.append(f"  {name:<5} {sizes} {ratio} {len(split.shards):>5} shards")
    return "\n".join(lines)
