"""What `retoken compare` shows on a terminal while it runs, and the table at its end."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from retoken.compare.folder import Comparison, RunKey
from retoken.compare.stats import BASELINE, Effect, bits_spread, effects, spread, variants_of
from retoken.compare.verdict import headline, signed, title
from retoken.report.words import plus_minus, quantity, ratio

_EVERY_SECONDS = 15.0


class View:
    """A line a run on a terminal; plain lines elsewhere. Speaks on stderr, so that stdout is the result's."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<16}"), BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[said]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self._console,
        ) if self._console.is_terminal else None  # fmt: skip
        self._tasks: dict[RunKey, TaskID] = {}
        self._said: dict[RunKey, dict[str, str]] = {}
        self._total: dict[RunKey, int] = {}
        self._spoke: dict[RunKey, float] = {}

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def event(self, key: RunKey, event: dict[str, Any]) -> None:
        """Show one event of a run."""
        kind, said = event["kind"], self._said.setdefault(key, {})
        if kind == "start":
            self._total[key] = event["total_steps"]
        elif kind == "train":
            said |= {
                "loss": f"loss {event['loss']:.3f}",
                "speed": f"{quantity(event['tokens_per_second'])} tok/s",
            }
        elif kind == "eval":
            said["val"] = f"held-out {event['val_loss']:.3f}"
        elif kind in ("launch", "samples", "stopping", "done"):
            words = {
                "launch": "starting",
                "samples": "writing samples",
                "stopping": "saving a checkpoint",
                "done": "",
            }
            said["state"] = words[kind]
        if kind in ("start", "train"):
            said["state"] = ""
        self._show(key, kind, event.get("step"))

    def label(self, key: RunKey) -> str:
        """How a run is called."""
        return f"{title(key.name)}, seed {key.seed}"

    def _show(self, key: RunKey, kind: str, step: int | None) -> None:
        said = self._said[key]
        text = "  ".join(said[part] for part in ("loss", "val", "speed", "state") if said.get(part))
        if self._progress is None:
            self._line(key, kind, step, text)
            return
        if key not in self._tasks:
            self._tasks[key] = self._progress.add_task(self.label(key), total=None, said="")
        self._progress.update(self._tasks[key], total=self._total.get(key), completed=step, said=text)

    def _line(self, key: RunKey, kind: str, step: int | None, text: str) -> None:
        now = time.monotonic()
        if kind in ("checkpoint", "modulators", "end") or (
            kind == "train" and now - self._spoke.get(key, 0) < _EVERY_SECONDS
        ):
            return
        self._spoke[key] = now
        where = f" step {step}/{self._total.get(key, '?')}" if step is not None else ""
        print(f"{key.label}{where}  {text or kind}", file=sys.stderr, flush=True)


def print_summary(comparison: Comparison, report: Path) -> None:
    """The table, the verdict and where the page is, on stdout."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)
    records = [run.record for run in comparison.runs]
    found = {effect.name: effect for effect in effects(records)}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("variant")
    for name in (
        "held-out loss",
        "bits/byte",
        "difference",
        "95 % interval",
        "stored",
        "tok/s",
        "of baseline",
    ):
        table.add_column(name, justify="right")
    for name in variants_of(records):
        ours = [record for record in records if record.name == name]
        speed = spread(record.tokens_per_second for record in ours).mean
        table.add_row(
            title(name), plus_minus(spread(r.val_loss for r in ours), 4), plus_minus(bits_spread(ours), 4),
            *_effect(found.get(name)), quantity(ours[0].stored_params), quantity(speed),
            ratio(found[name].speed) if name in found else ("1.00×" if name == BASELINE else "–"),
        )  # fmt: skip
    console.print(table)
    console.print(f"\n{headline(list(found.values()))}.", highlight=False)
    if comparison.missing:
        console.print(f"Not finished: {', '.join(key.label for key in comparison.missing)}.", highlight=False)
    console.print(f"Report: {report}", highlight=False, soft_wrap=True)


def _effect(effect: Effect | None) -> tuple[str, str]:
    if effect is None:
        return "–", "–"
    mean, half = effect.difference.mean, effect.half_width
    interval = "–" if half is None else f"{signed(mean - half, 4)} to {signed(mean + half, 4)}"
    return plus_minus(effect.difference, 4, sign=True), interval
