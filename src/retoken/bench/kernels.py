"""The Triton kernels on a GPU beside eager operators, torch.compile and the memory's bound, in turns."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from retoken.errors import RetokenError
from retoken.ops import gate, mix_rows, residual
from retoken.ops.triton import gate_rows, mix_rows_into
from retoken.train.timing import Spread, ratios

GPU = torch.device("cuda")
GAIN, EPS, MODULATORS, TOP_K = 1.0, 1e-6, 4, 2
FLUSH_BYTES = 1 << 29
"""Written before each call, so that no cache holds its rows, and launches are in line before it starts."""
CLOSE = 2**-6
"""How far a bfloat16 result may be from float64's, of its length."""
Operation = Literal["gate", "mix"]
Pass = Literal["forward", "training"]
Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelShape:
    """What is timed."""

    operation: Operation
    """"gate": ReToken's (Eq. 1-2); "mix": MoRT's, 2 of 4 (Eq. 4-6)."""
    what: Pass
    """"forward" alone without gradients, or with its backward pass: "training"."""
    tokens: int
    """T."""
    width: int
    """D."""

    @property
    def rows(self) -> int:
        """Rows of the table that a training step has at hand, or a larger one of inference."""
        return max(self.tokens // 2, 1) if self.what == "training" else 50304

    @property
    def bound_bytes(self) -> int:
        """Of every token its increment, rows and result once, in bfloat16; in training their gradients."""
        per_token = TOP_K if self.operation == "mix" else 1
        forward = (2 + per_token) * self.tokens * self.width * 2
        if self.what == "forward":
            return forward
        table = self.rows * self.width * 2 * (MODULATORS if self.operation == "mix" else 1)
        read = 1 + per_token + (self.operation == "gate")
        return forward + (read + (self.operation == "gate")) * self.tokens * self.width * 2 + table


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelRate:
    """One way to compute one shape."""

    shape: KernelShape
    """What."""
    way: str
    """"triton", "eager" or "compile"."""
    microseconds: Spread
    """A call, on the GPU's own clock."""
    triton_is_faster: Spread
    """Its time over the kernels' within a repeat."""
    of_bandwidth: float
    """The bound over its median."""


class Case:
    """Tensors of one shape, and the ways to compute it."""

    def __init__(self, shape: KernelShape) -> None:
        self.shape = shape
        chance = torch.Generator(GPU).manual_seed(0)

        def draw(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            values = torch.randn(size, generator=chance, device=GPU, dtype=torch.float32)
            return values.to(dtype).requires_grad_(shape.what == "training")

        per_token = (MODULATORS,) if shape.operation == "mix" else ()
        self.increment, self.scale = draw(shape.tokens, shape.width), draw(shape.width, dtype=torch.float32)
        self.table = draw(shape.rows, *per_token, shape.width)
        self.ids = torch.randint(shape.rows, (shape.tokens,), generator=chance, device=GPU)
        scores = torch.rand(shape.tokens, MODULATORS, generator=chance, device=GPU)
        found = scores.topk(TOP_K)
        self.chosen = found.indices
        self.weights = (found.values / found.values.sum(-1, keepdim=True)).requires_grad_(
            shape.what == "training"
        )
        self.grad = torch.randn(shape.tokens, shape.width, generator=chance, device=GPU).bfloat16()

    @property
    def leaves(self) -> list[Tensor]:
        """What gradients are of."""
        mixed = [self.weights] if self.shape.operation == "mix" else []
        return [self.increment, self.table, self.scale, *mixed]

    def eager(self) -> Tensor:
        """By the library's operators."""
        if self.shape.operation == "gate":
            return gate(self.increment, F.embedding(self.ids, self.table), self.scale, GAIN, EPS)
        flat = self.table.view(-1, self.shape.width)
        mixed = mix_rows(flat, self.ids.unsqueeze(-1) * MODULATORS + self.chosen, self.weights)
        return (self.increment.float() + residual(mixed, self.scale, GAIN, EPS)).to(self.increment.dtype)

    def triton(self) -> Tensor:
        """By the kernels."""
        if self.shape.operation == "gate":
            return gate_rows(self.increment, self.table, self.ids, self.scale, GAIN, EPS)
        return mix_rows_into(
            self.increment, self.table, self.ids, self.chosen, self.weights, self.scale, GAIN, EPS
        )

    def ways(self, compiled: bool) -> dict[str, Call]:
        """{name: one call of it, with its backward pass where the shape says so}.

        Raises:
            RetokenError: one does not give what the others do, going forward.
        """
        found = {"triton": self.triton, "eager": self.eager}
        if compiled:
            torch.compiler.reset()
            found["compile"] = torch.compile(self.eager, dynamic=False)
        wanted = self.eager().double()
        for name, way in found.items():
            off = (way().double() - wanted).norm() / wanted.norm()
            if not off <= CLOSE:
                raise RetokenError(f"{name} is {off:.2g} away from eager operators in {self.shape}")
        if self.shape.what == "forward":
            return dict(found)
        return {name: self._with_backward(way) for name, way in found.items()}

    def _with_backward(self, way: Callable[[], Tensor]) -> Call:
        return lambda: torch.autograd.grad(way(), self.leaves, self.grad)


def measure(
    shapes: Sequence[KernelShape],
    *,
    repeats: int,
    compiled: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[float, list[KernelRate]]:
    """Bytes a second of a large copy, and every shape by every way, in turns.

    Args:
        shapes: What is timed; one is in memory at a time.
        repeats: Turns of each way, at least 2.
        compiled: Whether torch.compile takes part.
        tell: Called with each shape before it starts.

    Raises:
        RetokenError: results differ.
    """
    bandwidth, found = copy_bandwidth(repeats), []
    for shape in shapes:
        tell(f"{shape.operation}, {shape.what}, T={shape.tokens}, D={shape.width}")
        with torch.set_grad_enabled(shape.what == "training"):
            times = in_turns(Case(shape).ways(compiled), repeats)
        found += _rates(shape, times, bandwidth)
    return bandwidth, found


def _rates(shape: KernelShape, times: dict[str, list[float]], bandwidth: float) -> Iterator[KernelRate]:
    for way, taken in times.items():
        yield KernelRate(
            shape=shape,
            way=way,
            microseconds=Spread.of(taken),
            triton_is_faster=ratios(taken, times["triton"]),
            of_bandwidth=shape.bound_bytes / bandwidth / (statistics.median(taken) * 1e-6),
        )


def in_turns(ways: dict[str, Call], repeats: int) -> dict[str, list[float]]:
    """Microseconds of each way's calls on the GPU, one after the other and back, caches flushed before."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=GPU)
    for way in ways.values():
        for _ in range(3):
            way()
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            flush.zero_()
            start.record()
            ways[name]()
            end.record()
            events[name].append((start, end))
        torch.cuda.synchronize()
    return {name: [start.elapsed_time(end) * 1e3 for start, end in pairs] for name, pairs in events.items()}


def copy_bandwidth(repeats: int) -> float:
    """Bytes read and written a second by a copy of 1 GiB."""
    of = torch.empty(1 << 30, dtype=torch.uint8, device=GPU).random_(0, 256)
    to = torch.empty_like(of)
    taken = in_turns({"copy": lambda: to.copy_(of)}, repeats)["copy"]
    return 2 * of.numel() / (statistics.median(taken) * 1e-6)


def write(path: Path, device: str, bandwidth: float, rates: Sequence[KernelRate]) -> None:
    """A CSV with a line a way."""
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, lineterminator="\n")
        spread = ("median", "low", "high")
        lines.writerow(
            [*("device", "copy_gb_s", "operation", "what", "tokens", "width", "way", "of_bandwidth")]
            + [f"{name}_{part}" for name in ("microseconds", "triton_is_faster") for part in spread]
        )
        for rate in rates:
            values = (rate.microseconds, rate.triton_is_faster)
            numbers = [f"{getattr(value, part):.4g}" for value in values for part in spread]
            shape = asdict(rate.shape).values()
            lines.writerow(
                [device, f"{bandwidth / 1e9:.0f}", *shape, rate.way, f"{rate.of_bandwidth:.3f}", *numbers]
            )
