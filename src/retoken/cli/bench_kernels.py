"""`retoken bench kernels`: the Triton kernels on a GPU, beside eager operators and torch.compile."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from retoken.cli.options import as_json
from retoken.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BenchKernels:
    """Time the Triton kernels on a GPU: gate and mixture, forward and training, against all alternatives.

    Against the library's eager operators, torch.compile, and the bytes that have to move over what a copy
    moves a second. Rows and increments are bfloat16, caches are flushed before each call. Results, not
    gradients, are compared before they are timed.
    """

    operations: tuple[Literal["gate", "mix"], ...] = ("gate", "mix")
    """ReToken's gate; MoRT's mixture of 2 of 4 rows with norm, scale and addition."""
    passes: tuple[Literal["forward", "training"], ...] = ("forward", "training")
    """Without gradients, or with the backward pass."""
    tokens: tuple[int, ...] = (16, 8192)
    """Tokens of a call."""
    widths: tuple[int, ...] = (1536, 4096)
    """Numbers a row."""
    repeats: int = 30
    """Turns of each; quartiles over them are the spread."""
    compile: bool = True
    """Whether torch.compile takes part."""
    csv: Path | None = None
    """Write a line a way there."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Measure and print; returns the exit code."""
        self._check()
        import torch

        from retoken.bench import kernels

        if not torch.cuda.is_available():
            raise ConfigError(
                "bench kernels times a GPU's kernels, and PyTorch finds no GPU; accepted: a GPU"
            )
        shapes = [
            kernels.KernelShape(operation=operation, what=what, tokens=tokens, width=width)
            for operation in self.operations
            for what in self.passes
            for tokens in self.tokens
            for width in self.widths
        ]
        bandwidth, rates = kernels.measure(
            shapes,
            repeats=self.repeats,
            compiled=self.compile,
            tell=lambda title: print(f"timing {title}", file=sys.stderr, flush=True),
        )
        device = torch.cuda.get_device_name()
        if self.csv:
            kernels.write(self.csv, device, bandwidth, rates)
        if self.json:
            found = {"device": device, "copy_bytes_per_second": bandwidth}
            print(as_json(found | {"rates": [asdict(rate) for rate in rates]}))
        else:
            Console(width=None if sys.stdout.isatty() else 130).print(_table(rates))
            print(f"{device}: a copy of 1 GiB moves {bandwidth / 1e9:,.0f} GB/s; torch {torch.__version__}")
        return 0

    def _check(self) -> None:
        if self.repeats < 2:
            raise ConfigError(f"--repeats is {self.repeats}; accepted: from 2")
        for name in ("operations", "passes", "tokens", "widths"):
            given = getattr(self, name)
            if not given or (name in ("tokens", "widths") and min(given) < 1):
                raise ConfigError(f"--{name} is {list(given)}; accepted: one or more, numbers from 1")
        if max(self.widths) > 8192:
            raise ConfigError(f"--widths has {max(self.widths)}; accepted: up to 8192")
        if self.csv and not self.csv.parent.is_dir():
            raise ConfigError(f"--csv is {self.csv}, whose folder does not exist; accepted: a file to write")


def _table(rates: Sequence[Any]) -> Table:
    names = ("", "T", "D", "by", "triton is faster", "of bandwidth", "us a call")
    table = Table(*names, title="ratios with quartiles", box=None)
    for rate in rates:
        shape, faster, taken = rate.shape, rate.triton_is_faster, rate.microseconds
        table.add_row(
            *(f"{shape.operation}, {shape.what}", str(shape.tokens), str(shape.width), rate.way),
            "" if rate.way == "triton" else f"{faster.median:.2f} ({faster.low:.2f} to {faster.high:.2f})",
            f"{rate.of_bandwidth:.2f}",
            f"{taken.median:,.1f} ({taken.low:,.1f} to {taken.high:,.1f})",
        )
    return table
