"""A table far larger than the memory it may use: served within the limit, and flat (one small backbone)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from retoken.bench.decode.cap import Cap, capped
from retoken.bench.decode.cases import VARIANTS, attach_source, layout_for, random_backbone
from retoken.bench.decode.records import forget, write
from retoken.serving.packed import PackedFile
from retoken.serving.source import PlacedRows
from retoken.serving.tiers import assign

OnPart = Callable[[int], None]
_BATCH, _LENGTH = 8, 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """After some tokens."""

    tokens: int
    resident: int
    """Bytes of memory this process has mapped, the file's pages among them."""
    anonymous: int
    """Of these, bytes that belong to no file."""
    charged: int
    """Bytes the memory group counts, page cache included."""
    seconds: float
    """Since the first token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """What came of it."""

    table_bytes: int
    limit: int
    points: list[Point]


def serve_within(
    folder: Path,
    *,
    preset: str,
    variant: str,
    rows: str,
    vocab_size: int,
    share: int,
    tokens: int,
    on_part: OnPart,
) -> Bound:
    """Serve a fully written file under a memory limit of a `share`-th of it, over uniformly random tokens.

    The limit is on all that the process takes from here on: the backbone, and cached pages of the file.
    Every record is as likely as any other, so nearly none is cached when it is needed.

    Raises:
        ConfigError: no memory group can be made here.
    """
    with capped() as cap:
        backbone = random_backbone(preset, torch.float32, vocab_size)
        layout = layout_for(backbone, VARIANTS[variant], rows)
        path = folder / "bound.safetensors"
        write(path, layout, torch.arange(layout.vocab_size))
        forget(path)
        cap.limit(layout.bytes // share)
        packed, homes = PackedFile(path), assign(layout, "disk", {}, None)
        source = PlacedRows(layout, {"disk": packed}, homes, backbone.dtype, torch.device("cpu"))
        model = attach_source(backbone, VARIANTS[variant], source)
        points = _serve(model, vocab_size, tokens, cap, on_part)
    return Bound(table_bytes=layout.bytes, limit=layout.bytes // share, points=points)


@torch.inference_mode()
def _serve(model: torch.nn.Module, vocab_size: int, tokens: int, cap: Cap, on_part: OnPart) -> list[Point]:
    generator, done, points = torch.Generator().manual_seed(0), 0, []
    started = time.perf_counter()
    every = max(tokens // 10, 1)
    while done < tokens:
        ids = torch.randint(0, vocab_size, (_BATCH, _LENGTH), generator=generator)
        model(input_ids=ids, logits_to_keep=1)
        done += _BATCH * _LENGTH
        if done >= every * (len(points) + 1):
            points.append(_point(done, cap, time.perf_counter() - started))
            on_part(done)
    return points


def _point(done: int, cap: Cap, seconds: float) -> Point:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    wanted = [line.split() for line in lines if line.startswith(("VmRSS", "RssAnon"))]
    sizes = {name.rstrip(":"): int(size) << 10 for name, size, _ in wanted}
    return Point(
        tokens=done,
        resident=sizes["VmRSS"],
        anonymous=sizes["RssAnon"],
        charged=cap.usage,
        seconds=round(seconds, 2),
    )
