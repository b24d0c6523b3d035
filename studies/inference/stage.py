"""How long the rows of a pass take to reach a GPU, all layers at once or one by one.

    python studies/inference/stage.py > studies/inference/stage_h200.csv

Records of the XL shape in host memory, gathered by the host or by the device (`retoken.place(..., gather=)`).
Prints a line a case: until the host goes on, and until all rows are there, medians of 30 in microseconds.
"""

from __future__ import annotations

import statistics
import time

import torch

from retoken.serving.direct import device_stage
from retoken.serving.layout import RecordLayout
from retoken.serving.stage import Stage

GPU = torch.device("cuda")
SHAPES = {"retoken": (None, 16384), "mort-2of4": (4, 6000)}
"""Rows a token and layer, and records."""
POSITIONS = (1, 8, 16, 64, 256)
WARM, COUNT = 10, 30
WAYS = {"one by one": 0, "at once": 1 << 40}


def timed(stage: Stage, vocab_size: int, positions: int) -> tuple[float, float]:
    """Microseconds until the host goes on, and until the rows are there."""
    found = []
    for _ in range(WARM + COUNT):
        ids = torch.randint(0, vocab_size, (1, positions), device=GPU)
        torch.cuda.synchronize()
        start = time.perf_counter()
        stage.prefetch(ids)
        asked = time.perf_counter()
        stage.wait()
        torch.cuda.synchronize()
        found.append((1e6 * (asked - start), 1e6 * (time.perf_counter() - start)))
    host, there = zip(*found[WARM:], strict=True)
    return statistics.median(host), statistics.median(there)


def main() -> None:
    """Every case."""
    print("variant,gathered by,positions,bytes,way,host_us,there_us")
    for name, (rows, vocab_size) in SHAPES.items():
        layout = RecordLayout(
            vocab_size=vocab_size, layers=tuple(range(28)), rows_per_token=rows, width=1536, rows="bfloat16"
        )
        records = torch.full((vocab_size, layout.record_bytes), 3, dtype=torch.uint8)
        stages = [Stage(layout, lambda ids, own=records: own.index_select(0, ids), GPU)]
        stages += [stage] if (stage := device_stage(layout, records, GPU)) else []
        for stage in stages:
            for positions in POSITIONS:
                for way, stage.at_once in WAYS.items():
                    host, there = timed(stage, vocab_size, positions)
                    size = positions * 28 * layout.staged_bytes
                    print(name, stage.gathered_by, positions, size, way, f"{host:.0f},{there:.0f}", sep=",")


if __name__ == "__main__":
    main()
