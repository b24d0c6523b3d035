"""Where a decoded token's time goes, by placement: `docs/inference.svg`.

    python studies/inference/where.py --model dense-xl --data STORE --work WORK     # measures: where.csv
    python studies/inference/where.py                                               # draws what was measured

Attention, MLPs and the head are timed where they run; what is left of a pass beyond what the plain backbone
leaves is what rows cost: finding them, waiting for them, and computing with them.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import torch
from torch import nn

from retoken.bench.decode.cases import BASELINE, Case, preset_cases, random_backbone
from retoken.bench.decode.prompts import Prompt, cut, tokens_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
TABLE, FIGURE = HERE / "where.csv", HERE.parent.parent / "docs" / "inference.svg"
PARTS = {"attention": "#9db8d1", "MLP": "#4a78a8", "head": "#c9c9c9", "rest": "#e6e6e6", "rows": "#c2571a"}
VARIANTS = ("retoken", "mort-3of5")
PLACEMENTS = ("device", "disk-warm", "disk-cold", "sync-host", "sync-cold")


class Clock:
    """Seconds spent in some modules of a model."""

    def __init__(self, model: nn.Module) -> None:
        self.spent = dict.fromkeys(("attention", "MLP", "head"), 0.0)
        for layer in model.model.layers:
            self._watch(layer.self_attn, "attention")
            self._watch(layer.mlp, "MLP")
        self._watch(model.lm_head, "head")

    def _watch(self, module: nn.Module, part: str) -> None:
        started = 0.0

        def before(*_: object) -> None:
            nonlocal started
            started = time.perf_counter()

        def after(*_: object) -> None:
            self.spent[part] += time.perf_counter() - started

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after, prepend=True)


@torch.inference_mode()
def measure(case: Case, clock: Clock, prompt: Prompt) -> list[dict[str, float]]:
    """Milliseconds of each part, of each decoded token."""
    from transformers import DynamicCache

    case.prepare(torch.cat([prompt.ids.flatten(), prompt.following.flatten()]).unique())
    cache, found = DynamicCache(config=case.model.config), []
    case.model(input_ids=prompt.ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    for ids in prompt.following.split(1, 1):
        case.between()
        clock.spent = dict.fromkeys(clock.spent, 0.0)
        started = time.perf_counter()
        case.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        total = time.perf_counter() - started
        found.append({**clock.spent, "total": total})
    return [{part: 1e3 * seconds for part, seconds in token.items()} for token in found]


def take(model: str, data: Path, work: Path | None, repeats: int) -> None:
    """Measure in turns, and write where.csv."""
    prompts = cut(data, count=repeats + 1, batch=1, length=32, following=6, seed=7)
    backbone = random_backbone(model, torch.bfloat16)
    with TemporaryDirectory(dir=work) as folder:
        options = {"rows": "bfloat16", "tokens": tokens_of(prompts), "folder": Path(folder)}
        cases = preset_cases(backbone, VARIANTS, PLACEMENTS, **options)
        clocks = [Clock(case.model) for case in cases]
        found: dict[tuple[str, str], list[dict[str, float]]] = {}
        for turn, prompt in enumerate(prompts):
            for case, clock in list(zip(cases, clocks, strict=True))[:: 1 if turn % 2 else -1]:
                tokens = measure(case, clock, prompt)
                if turn:
                    found.setdefault((case.variant, case.placement), []).extend(tokens)
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("variant", "placement", "tokens", "attention", "MLP", "head", "total"))
        for (variant, placement), tokens in found.items():
            parts = [
                statistics.median(t[part] for t in tokens) for part in ("attention", "MLP", "head", "total")
            ]
            writer.writerow((variant, placement, len(tokens), *(f"{part:.4f}" for part in parts)))


def draw() -> None:
    """One bar a placement, in milliseconds a token; the last part is what rows cost."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    plain = next(row for row in rows if row["variant"] == BASELINE)
    known = ("attention", "MLP", "head")
    rest = float(plain["total"]) - sum(float(plain[part]) for part in known)
    figure, axis = plt.subplots(figsize=(8, 0.42 * len(rows) + 1.1), layout="constrained")
    for place, row in enumerate(rows):
        left = float(row["total"]) - sum(float(row[part]) for part in known)
        widths = [*(float(row[part]) for part in known), rest, max(left - rest, 0.0)]
        start = 0.0
        for part, width in zip(PARTS, widths, strict=True):
            axis.barh(place, width, left=start, color=PARTS[part], label=part if place == 0 else None)
            start += width
        share = widths[-1] / float(plain["total"])
        if row["variant"] != BASELINE:
            axis.text(start, place, f"  rows {widths[-1]:.2f} ms ({share:.1%})", va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [f"{row['variant']} {row['placement']}".strip() for row in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.35 * max(float(row["total"]) for row in rows))
    axis.set_xlabel("milliseconds a decoded token (medians)")
    axis.legend(ncols=5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.12), fontsize=8)
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    """Measure where asked to, and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--repeats", type=int, default=6)
    args = parser.parse_args()
    if args.model and args.data:
        take(args.model, args.data, args.work, args.repeats)
    draw()


if __name__ == "__main__":
    main()
