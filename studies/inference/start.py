"""What a 16 GiB table adds to a start: a model folder with packed rows, loaded in fresh processes, in turns.

python studies/inference/start.py --work WORK      # the file has holes: little disk is needed
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import retoken
from retoken.attach.absent import ROWS_FILE, ROWS_FINGERPRINT, AbsentTable
from retoken.bench.decode.cases import layout_for, random_backbone
from retoken.bench.decode.records import write
from retoken.serving.packed import PackedFile

CONFIG = retoken.MoRTConfig(num_modulators=28, top_k=3)
VOCAB = 151_936
LOAD = """
import sys, time, torch, transformers, retoken
ids = torch.tensor([[1, 2, 3]])
started = time.perf_counter()
if sys.argv[1] == "plain":
    model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[2])
else:
    model = retoken.load(sys.argv[2])
with torch.inference_mode():
    model(input_ids=ids)
print(time.perf_counter() - started)
"""


def make(folder: Path) -> int:
    """Two folders, the backbone and the same with packed rows; returns the bytes of the table."""
    backbone = random_backbone("cpu-l", torch.float32, VOCAB)
    backbone.save_pretrained(folder / "plain")
    layout = layout_for(backbone, CONFIG, "bfloat16")
    model = retoken.attach(backbone, CONFIG, table=lambda *shape: AbsentTable(*shape))
    model.save_pretrained(folder / "attached")
    path = folder / "attached" / "rows.safetensors"
    write(path, layout, torch.tensor([1, 2, 3]))
    config = folder / "attached" / "config.json"
    written = json.loads(config.read_text())
    names = {ROWS_FILE: path.name, ROWS_FINGERPRINT: PackedFile(path).fingerprint}
    written["retoken"] |= names
    config.write_text(json.dumps(written))
    return layout.bytes


def main() -> None:
    """Load both in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    with TemporaryDirectory(dir=args.work) as folder:
        size = make(Path(folder))
        seconds: dict[str, list[float]] = {"plain": [], "attached": []}
        whole: dict[str, list[float]] = {"plain": [], "attached": []}
        for _ in range(args.repeats):
            for name in seconds:
                started = time.perf_counter()
                command = [sys.executable, "-c", LOAD, name, str(Path(folder) / name)]
                said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                whole[name].append(time.perf_counter() - started)
                seconds[name].append(float(said.split()[-1]))
    for what, found in (("load and first pass", seconds), ("whole process", whole)):
        plain, attached = (statistics.median(found[name]) for name in ("plain", "attached"))
        more = [b - a for a, b in zip(found["plain"], found["attached"], strict=True)]
        print(
            f"{what}: plain {plain:.2f} s, with a table of {size / 2**30:.1f} GiB {attached:.2f} s; "
            f"{statistics.median(more):+.2f} s ({min(more):+.2f} to {max(more):+.2f})"
        )


if __name__ == "__main__":
    main()
