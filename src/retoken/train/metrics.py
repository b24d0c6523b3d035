"""What a run says about itself: metrics.jsonl, TensorBoard, events; and how long it trained."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retoken.checkpoint.files import writing
from retoken.errors import CheckpointError, TrainingError
from retoken.train.config import TrainConfig
from retoken.train.folder import RunFolder
from retoken.train.world import World

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


class Clock:
    """Seconds of training; stands still while paused."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Training seconds of the run so far, over all its parts."""
        return self._before + (time.perf_counter() - self._since if self._since is not None else 0.0)

    @contextmanager
    def paused(self, device: torch.device) -> Iterator[None]:
        """Around evaluation and checkpoints. Waits for the device first, so that its work is counted."""
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def restart(self, seconds: float) -> None:
        """Run on from `seconds`."""
        self._before, self._since = seconds, time.perf_counter()


class _Step(NamedTuple):
    step: int
    loss: Tensor
    grad_norm: Tensor
    batch: dict[str, Any]


class MetricLog:
    """Writes the lines. Losses wait on the device until a line is due: a step never waits for them."""

    def __init__(
        self,
        folder: RunFolder,
        config: TrainConfig,
        world: World,
        flops_per_token: float,
        last_good: Callable[[], Path | None],
        on_event: OnEvent | None,
    ) -> None:
        self.clock = Clock()
        self.flops_per_token = flops_per_token
        self._folder, self._config, self._world = folder, config, world
        self._last_good = last_good
        self._on_event = on_event or (lambda event: None)
        self._waiting: list[_Step] = []
        self._settled: list[tuple[float, float]] = []
        self._line_seconds, self._line_step = 0.0, 0
        self._file = folder.metrics.open("ab") if world.leads else None
        self._board = _tensorboard(folder) if world.leads else None

    def add(self, step: int, loss: Tensor, grad_norm: Tensor, batch: dict[str, Any]) -> None:
        """Note one step; `loss` is this process's mean, `batch` where the reader stood."""
        self._waiting.append(_Step(step, loss, grad_norm, batch))

    def settle(self) -> None:
        """Bring the waiting losses to the host.

        Raises:
            TrainingError: One is not finite; the step, its batch and the last good checkpoint are named.
        """
        if not self._waiting:
            return
        losses = self._world.sum(torch.stack([s.loss.float() for s in self._waiting])) / self._world.size
        norms = torch.stack([s.grad_norm.float() for s in self._waiting])
        pairs = list(zip(losses.tolist(), norms.tolist(), strict=True))
        for noted, (loss, norm) in zip(self._waiting, pairs, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise TrainingError(self._not_finite(noted, loss, norm))
        self._settled += pairs
        self._waiting.clear()

    def train_line(self, step: int, lr: float) -> None:
        """The line of the steps since the last one: their mean loss and gradient norm."""
        self.settle()
        seconds, tokens = self.clock.seconds, self._config.tokens_per_step
        interval = max(seconds - self._line_seconds, 1e-9)
        loss, norm = (math.fsum(column) / len(column) for column in zip(*self._settled, strict=True))
        speed = (step - self._line_step) * tokens / interval
        self._settled.clear()
        self._line_seconds, self._line_step = seconds, step
        self.line("train", step, {"loss": loss, "lr": lr, "grad_norm": norm, "tokens_per_second": speed})

    def line(self, kind: str, step: int, values: Event) -> None:
        """One object of metrics.jsonl, the same to TensorBoard and to the caller."""
        tokens = step * self._config.tokens_per_step
        head = {
            "kind": kind,
            "step": step,
            "tokens": tokens,
            "seconds": self.clock.seconds,
            "flops": tokens * self.flops_per_token,
        }
        event = head | values
        if self._file is None or self._board is None:
            return
        with writing(self._folder.metrics):
            self._file.write((json.dumps(event, allow_nan=False) + "\n").encode())
            self._file.flush()
            for name, number in _scalars(kind, values):
                self._board.add_scalar(name, number, step)
        self._on_event(event)

    def tell(self, kind: str, **values: Any) -> None:
        """An event for the caller only."""
        if self._world.leads:
            self._on_event({"kind": kind, **values})

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; the lines before it are on the disk."""
        self.settle()
        if self._file is not None:
            os.fsync(self._file.fileno())
        return {
            "seconds": self.clock.seconds,
            "settled": self._settled,
            "line_seconds": self._line_seconds,
            "line_step": self._line_step,
            "metrics_bytes": self._file.tell() if self._file else 0,
        }

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Go on from a checkpoint at `step`: lines written after it are cut off.

        Raises:
            CheckpointError: metrics.jsonl is shorter than when the checkpoint was written.
        """
        self._settled = [(loss, norm) for loss, norm in state["settled"]]
        self._line_seconds, self._line_step = state["line_seconds"], state["line_step"]
        self.clock.restart(state["seconds"])
        if self._file is None:
            return
        found, wanted = self._file.seek(0, os.SEEK_END), state["metrics_bytes"]
        if found < wanted:
            raise CheckpointError(
                f"{self._folder.metrics} has {found} bytes; the checkpoint was written behind {wanted}"
            )
        self._cut(wanted, step + 1)

    def start_anew(self) -> None:
        """The run begins: lines of an attempt that left no checkpoint are cut off."""
        if self._file is not None and self._file.seek(0, os.SEEK_END):
            self._cut(0, 0)

    def _cut(self, size: int, step: int) -> None:
        """Keep `size` bytes of the lines, and TensorBoard's steps below `step`."""
        assert self._file is not None and self._board is not None
        self._file.truncate(size)
        self._file.seek(size)
        self._board.close()
        self._board = _tensorboard(self._folder, purge_step=step)

    def close(self) -> None:
        """Close the files."""
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()

    def _not_finite(self, noted: _Step, loss: float, norm: float) -> str:
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient norm is {norm} (loss {loss:.4f})"
        good = self._last_good()
        where = f"step {noted.step}, batch {json.dumps(noted.batch)}"
        return f"{what} at {where}; last good checkpoint: {good or 'none'}"


def _tensorboard(folder: RunFolder, purge_step: int | None = None) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder.tensorboard), purge_step=purge_step)


def _scalars(prefix: str, values: Any) -> Iterator[tuple[str, float]]:
    """Every number in nested dicts and lists, named by its path."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in pairs:
        name = f"{prefix}/{key}"
        if isinstance(value, dict | list):
            yield from _scalars(name, value)
        else:
            yield name, float(value)
