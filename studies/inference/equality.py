"""Whether placement, prefetch and batch size change what a model says: 200 real prompts, bit for bit.

    retoken train cpu-s --variant retoken --data STORE --out RETOKEN
    retoken train cpu-s --variant mort --data STORE --out MORT
    python studies/inference/equality.py --data STORE --runs RETOKEN MORT --work WORK

Greedy tokens and the logits behind each, of the model with its rows placed, against the resident model's.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

import retoken
from retoken.bench.decode.cases import twin
from retoken.bench.decode.prompts import cut
from retoken.eval import open_checkpoint
from retoken.serving.layout import RecordLayout
from retoken.serving.reader import TensorReader, layout_of

TABLE = Path(__file__).with_name("equality.csv")
PROMPTS, LENGTH, NEW = 200, 48, 16
BATCHES = (1, 8)
PLACES = ("device", "host", "disk", "cascade")
AHEAD = ("record", "chosen", "none")


def placed(model: PreTrainedModel, place: str, ahead: str, counts: Path, folder: Path) -> PreTrainedModel:
    """A twin of the model with its rows in a placement."""
    model, path = twin(model), folder / "rows.safetensors"
    options: dict = {"prefetch": ahead}
    if place == "cascade":
        record = layout(model).record_bytes
        options |= {"budget": {"device": 500 * record, "host": 1500 * record}, "counts": counts}
    tier = "disk" if place == "cascade" else place
    retoken.place(model, tier, path=path if tier == "disk" else None, **options)
    return model


def layout(model: PreTrainedModel) -> RecordLayout:
    """Of its records."""
    tables = {i: part.table.weight for i, part in retoken.modulators(model).items()}
    return layout_of(TensorReader(tables, False))


@torch.inference_mode()
def answers(model: PreTrainedModel, prompts: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Greedy tokens [N, NEW], and a 64-bit digest of the bits of the logits behind each [N, NEW]."""
    tokens, digests = [], []
    for ids in prompts.split(batch):
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
        tokens.append(out.sequences[:, LENGTH:])
        bits = torch.stack(out.logits, 1).float().view(torch.int32).long()
        digests.append((bits * odd_numbers(bits.shape[-1])).sum(-1))
    return torch.cat(tokens), torch.cat(digests)


def odd_numbers(count: int) -> Tensor:
    """[count] int64, each of 64 random bits: one changed number always shows in a sum of such multiples."""
    drawn = torch.randint(-(1 << 62), 1 << 62, (count,), generator=torch.Generator().manual_seed(0))
    return 2 * drawn + 1


def main() -> None:
    """Compare, and write equality.csv."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, nargs="+", required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    (some,) = cut(args.data, count=1, batch=PROMPTS, length=LENGTH, following=1, seed=0)
    lines = []
    for run in args.runs:
        model = open_checkpoint(str(run)).model
        folder = args.work / f"rows-{run.name}"
        folder.mkdir(parents=True, exist_ok=True)
        lines += compare(model, some.ids, folder, args.data)
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def compare(model: PreTrainedModel, prompts: Tensor, folder: Path, counts: Path) -> list[dict]:
    """One line a placement, prefetch and batch size: how many prompts have the same tokens and logits."""
    kind, lines = model.config.retoken["modulator"]["type"], []
    for batch in BATCHES:
        tokens, digests = answers(model, prompts, batch)
        for place in PLACES:
            for ahead in AHEAD if place in ("disk", "cascade") else ("record",):
                other = placed(model, place, ahead, counts, folder)
                own, own_digests = answers(other, prompts, batch)
                line = {
                    "modulator": kind,
                    "placement": place,
                    "prefetch": ahead,
                    "batch": batch,
                    "prompts": len(prompts),
                    "same_tokens": int((own == tokens).all(1).sum()),
                    "same_logits": int((own_digests == digests).all(1).sum()),
                }
                print(line, flush=True)
                lines.append(line)
    return lines


if __name__ == "__main__":
    main()
