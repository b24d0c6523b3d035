"""What `retoken train` shows: one live line on a terminal, a few plain ones elsewhere, and the result."""

from __future__ import annotations

import sys
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from retoken.train import TrainConfig, TrainResult


class TrainView:
    """Speaks on stderr, so that stdout is the result's."""

    def __init__(self, config: TrainConfig, console: Console | None = None) -> None:
        self._total = config.total_steps
        self._said: dict[str, str] = {}
        self._console = console or Console(stderr=True)
        self._bar = _bar(self._console) if self._console.is_terminal else None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total, said="starting")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True) if not self._bar else self._console.print(text)

    def event(self, event: dict[str, Any]) -> None:
        """Show one event of the loop."""
        kind, step = event["kind"], event["step"]
        if kind == "train":
            self._said["loss"] = f"loss {event['loss']:.3f}"
            self._said["speed"] = f"{event['tokens_per_second']:,.0f} tok/s"
        elif kind == "eval":
            self._said["held out"] = f"held-out {event['val_loss']:.3f}"
        text = "  ".join(self._said.values())
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=step, said=text)
        if kind == "start" and event.get("tables"):
            self._say(event["tables"])
        if self._bar:
            return
        if kind == "start" and step:
            print(f"going on from step {step} of {self._total}", file=sys.stderr, flush=True)
        elif kind == "eval":
            print(f"step {step} of {self._total}  {text}", file=sys.stderr, flush=True)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def print_result(result: TrainResult) -> None:
    """The outcome in a few lines on stdout."""
    bits = "" if result.val_bits_per_byte is None else f", {result.val_bits_per_byte:.4f} bits per byte"
    print(f"{result.name}, seed {result.seed}: {result.out}")
    print(f"  held-out loss  {result.val_loss:.4f} nats per token{bits}, over {result.val_tokens:,} tokens")
    speed = f"{result.train_seconds:,.1f} s, {result.tokens_per_second:,.0f} tok/s"
    print(f"  trained        {result.tokens:,} tokens in {result.steps:,} steps, {speed}")
    print(f"  parameters     {result.backbone_params:,} backbone, {result.table_params:,} tables")
    print(f"  memory         {result.peak_memory_bytes / 2**20:,.0f} MiB at the peak")
