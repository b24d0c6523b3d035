"""Folders of the Dense XL shape for `throughput.py`: random weights, and rows in a file with holes.

    python studies/serving/make_xl.py --tokenizer FOLDER --text p.jsonl --out OUT

Makes OUT/plain, OUT/retoken and OUT/mort. Rows are random for the tokens of the text; all others' are zeros,
which are neutral: a token that is generated has its record read and checked like any other.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import torch
from transformers import AutoTokenizer

import retoken
from retoken.attach.absent import ROWS_FILE, ROWS_FINGERPRINT, AbsentTable
from retoken.attach.checkpoint import FIELD
from retoken.bench.decode import cases, records
from retoken.serving.layout import CHECK_SEED
from retoken.serving.packed import PackedFile

VARIANTS = {
    "retoken": retoken.ReTokenConfig(),
    "mort": retoken.MoRTConfig(num_modulators=4, top_k=2),
}
SCALE_STD = 0.15


def make_rows(path: Path, layout: retoken.serving.RecordLayout, tokens: torch.Tensor) -> None:
    """The packed file: records of zeros are complete ones too."""
    records.write(path, layout, tokens)
    packed, start = PackedFile(path), path.stat().st_size - layout.bytes
    whole = packed.records()
    with path.open("r+b") as file:
        for token in range(layout.vocab_size):
            last = start + (token + 1) * layout.record_bytes - 4
            if not whole[token, -4:].any():
                os.pwrite(file.fileno(), CHECK_SEED.to_bytes(4, "little"), last)


def make(model: torch.nn.Module, name: str, tokens: torch.Tensor, out: Path) -> None:
    """One folder of an attached model."""
    config = VARIANTS[name]
    attached = retoken.attach(cases.twin(model), config, table=AbsentTable)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in retoken.modulators(attached).values():
            module.scale.copy_(torch.randn(module.scale.shape, generator=generator) * SCALE_STD)
    attached.save_pretrained(out)
    make_rows(out / "rows.safetensors", cases.layout_for(attached, config, "bfloat16"), tokens)
    written = json.loads((out / "config.json").read_text())
    fingerprint = PackedFile(out / "rows.safetensors").fingerprint
    written[FIELD] |= {ROWS_FILE: "rows.safetensors", ROWS_FINGERPRINT: fingerprint}
    (out / "config.json").write_text(json.dumps(written, indent=2))


def main() -> None:
    """Make all three."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(asked.tokenizer)
    lines = asked.text.read_text().splitlines()
    ids = sorted({i for line in lines for i in tokenizer(json.loads(line)["prompt"])["input_ids"]})
    model = cases.random_backbone("dense-xl", torch.bfloat16)
    model.save_pretrained(asked.out / "plain")
    for name in VARIANTS:
        make(model, name, torch.tensor(ids), asked.out / name)
    for name in ("plain", *VARIANTS):
        tokenizer.save_pretrained(asked.out / name)


if __name__ == "__main__":
    main()
