"""Which attention gives the same bits each time? How many different answers of many, on a GPU.

    python studies/inference/attention.py --csv attention.csv

First attention alone, one query over 134 keys as the XL shape decodes, with a mask and without; then the
plain XL backbone decoding, by calls and by replays of a CUDA graph.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from retoken.bench.decode import cases, prompts
from retoken.bench.decode.passes import REPEATABLE, EagerPasses, GraphPasses

WAYS = {
    "PyTorch's choice": [],
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "math": [SDPBackend.MATH],
    "all but cudnn": REPEATABLE,
}
COLUMNS = ("what", "sequences", "attention", "how", "different", "of")


Answer = Callable[[], Tensor]


def different(make: Callable[[], Answer], times: int) -> str:
    """How many of so many answers are, bit for bit; "refused": there is no such kernel."""
    found: list[Tensor] = []
    try:
        answer = make()
        for _ in range(times):
            this = answer().clone()
            if not any(torch.equal(this, other) for other in found):
                found.append(this)
    except RuntimeError:
        return "refused"
    return str(len(found))


def alone(sequences: int) -> Iterator[tuple[str, Callable[[], Answer]]]:
    """Attention of 12 heads 128 wide."""
    options = {"device": "cuda", "dtype": torch.bfloat16}
    q_BHSD = torch.randn(sequences, 12, 1, 128, **options)
    k_BHSD, v_BHSD = (torch.randn(sequences, 12, 134, 128, **options) for _ in range(2))
    mask = torch.arange(134, device="cuda").expand(sequences, 1, 1, 134) < 130
    for how, masked in (("mask", mask), ("no mask", None)):
        answer = partial(scaled_dot_product_attention, q_BHSD, k_BHSD, v_BHSD, attn_mask=masked)
        yield how, lambda answer=answer: answer


def decoding(model: PreTrainedModel, kind: type[EagerPasses | GraphPasses], prompt: prompts.Prompt) -> Answer:
    """Logits behind a prompt and each of what follows it, by passes made now."""
    passes = kind(model, len(prompt.ids), prompt.ids.shape[1] + prompt.following.shape[1])

    def answer() -> Tensor:
        found = [passes.first(prompt.ids).clone()]
        found += [passes.further(ids).clone() for ids in prompt.following.split(1, dim=1)]
        return torch.cat(found)

    return answer


def backbone(model: PreTrainedModel, sequences: int) -> Iterator[tuple[str, Callable[[], Answer]]]:
    """Six tokens behind prompts of 128."""
    ids = torch.randint(2048, (sequences, 134), generator=torch.Generator().manual_seed(0))
    prompt = prompts.Prompt(*ids.split([128, 6], dim=1)).to(model.device)
    for how, kind in (("graph", GraphPasses), ("calls", EagerPasses)):
        yield how, partial(decoding, model, kind, prompt)


@torch.inference_mode()
def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--csv", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = cases.random_backbone("dense-xl", torch.bfloat16, 2048, device="cuda")
    kinds = [("attention", n, alone(n), 300) for n in (8, 16, 32)]
    kinds += [("backbone", n, backbone(model, n), 6) for n in (8, 16)]
    rows = []
    for what, sequences, answers, times in kinds:
        for how, make in answers:
            for way, kernels in WAYS.items():
                with sdpa_kernel(kernels) if kernels else contextlib.nullcontext():
                    count = different(make, times)
                rows.append((what, sequences, way, how, count, times))
                print(*rows[-1], flush=True)
    with args.csv.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
