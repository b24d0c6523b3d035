"""Whether placement, prefetch and batch size change what a model says: 200 real prompts, bit for bit.

    retoken train cpu-s --variant retoken --data STORE --out RETOKEN
    retoken train cpu-s --variant mort --data STORE --out MORT
    ... --variant mort --mort.router-input block_input --tokens 409600 --out EARLY
    ... --variant mort --mort.injection-delay 1 --tokens 409600 --out DELAYED
    python studies/inference/equality.py --data STORE --runs RETOKEN MORT EARLY DELAYED --work WORK

Greedy tokens and the logits behind each, of the model with its rows placed, against the resident model's; of
int8 rows, against the model that reads them from memory as records.
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
BATCHES = (1, 8, 16)
PLACES = ("device", "host", "disk", "cascade")
AHEAD = ("record", "chosen", "none")


def placed(
    model: PreTrainedModel, place: str, ahead: str, rows: str, counts: Path, folder: Path
) -> PreTrainedModel:
    """A twin of the model with its rows in a placement, as records of a type."""
    model, path = twin(model), folder / f"{rows}.safetensors"
    options: dict = {"prefetch": ahead, "rows": rows}
    if place == "cascade":
        size = layout(model, rows).record_bytes
        options |= {"budget": {"device": 500 * size, "host": 1500 * size}, "counts": counts}
    tier = "disk" if place == "cascade" else place
    retoken.place(model, tier, path=path if tier == "disk" else None, **options)
    return model


def layout(model: PreTrainedModel, rows: str) -> RecordLayout:
    """Of its records."""
    tables = {i: part.table.weight for i, part in retoken.modulators(model).items()}
    return layout_of(TensorReader(tables, False), rows)


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


def cases() -> list[tuple[str, str, str]]:
    """(row type, placement, prefetch); the first of int8 is what its others are compared with."""
    found = [("float32", place, "record") for place in ("device", "host")]
    found += [("float32", place, ahead) for place in ("disk", "cascade") for ahead in AHEAD]
    return found + [("int8", place, "record") for place in PLACES]


def compare(model: PreTrainedModel, prompts: Tensor, folder: Path, counts: Path) -> list[dict]:
    """One line a placement, prefetch and batch size: how many prompts have the same tokens and logits."""
    lines = []
    for batch in BATCHES:
        wanted = {"float32": answers(model, prompts, batch)}
        for rows, place, ahead in cases():
            found = answers(placed(model, place, ahead, rows, counts, folder), prompts, batch)
            same = [
                (a == b).all(1).sum().item()
                for a, b in zip(found, wanted.setdefault(rows, found), strict=True)
            ]
            line = {"modulator": name_of(model), "rows": rows, "placement": place, "prefetch": ahead}
            line |= {"batch": batch, "prompts": len(prompts), "same_tokens": same[0], "same_logits": same[1]}
            if found is not wanted[rows]:
                print(line, flush=True)
                lines.append(line)
    return lines


def name_of(model: PreTrainedModel) -> str:
    """retoken, mort, or mort with what it has of its own."""
    config = model.config.retoken["modulator"]
    early = config.get("router_input") == "block_input"
    return config["type"] + " early" * early + " delayed" * bool(config.get("injection_delay"))


if __name__ == "__main__":
    main()
