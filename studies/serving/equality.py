"""Greedy tokens and log-probabilities of vLLM beside transformers', on real prompts: `equality.csv`.

    python studies/serving/equality.py --data STORE --model FOLDER --placement '{}' --out equality.csv

One line a call is added: a model, a placement, alone and in batches. Float32: in bfloat16 two engines round
differently, and a near tie then goes either way in both.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM

import retoken  # noqa: F401  (lets transformers load attached models)
from retoken.bench.decode.prompts import cut

Answers = list[tuple[list[int], list[float]]]
"""Of each prompt its new tokens and their log-probabilities."""


def prompts_of(data: Path, model: Path, count: int) -> list[list[int]]:
    """Beginnings of held-out text of 8 to 64 tokens, in ids that the model has."""
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    found = cut(data, count=count, batch=1, length=64, following=1, seed=11)
    return [(p.ids[0, : 8 + 7 * i % 57] % rows).tolist() for i, p in enumerate(found)]


@torch.inference_mode()
def by_transformers(model: Path, prompts: list[list[int]], new: int) -> Answers:
    """One prompt after the other."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        out = loaded.generate(ids, attention_mask=torch.ones_like(ids), eos_token_id=None, **options)
        logits = loaded(out[:, :-1]).logits[0, len(prompt) - 1 :].float()
        tokens = out[0, len(prompt) :]
        found.append((tokens.tolist(), logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0].tolist()))
    return found


@torch.inference_mode()
def of_transformers(model: Path, prompts: list[list[int]], answers: Answers) -> Answers:
    """Its own greedy choices behind each token of vLLM's answers, and the log-probabilities of vLLM's.

    One pass a prompt: where all choices are vLLM's tokens, generating one by one gives these, too.
    """
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    found = []
    for prompt, (tokens, _) in zip(prompts, answers, strict=True):
        logits = loaded(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :].float()
        logprobs = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
        found.append((logits.argmax(-1).tolist(), logprobs.tolist()))
    return found


def by_vllm(llm: object, prompts: list[list[int]], new: int, at_once: int) -> Answers:
    """So many at once."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=new, logprobs=0, ignore_eos=True, detokenize=False)
    found = []
    for start in range(0, len(prompts), at_once):
        asked = [{"prompt_token_ids": p} for p in prompts[start : start + at_once]]
        for answer in llm.generate(asked, sampling, use_tqdm=False):  # pyright: ignore
            out = answer.outputs[0]
            pairs = zip(out.logprobs, out.token_ids, strict=True)
            found.append((list(out.token_ids), [step[token].logprob for step, token in pairs]))
    return found


def compared(a: Answers, b: Answers) -> tuple[int, float]:
    """How many prompts have the same tokens, and the largest difference of their log-probabilities."""
    same = [(x, y) for (s, x), (t, y) in zip(a, b, strict=True) if s == t]
    return len(same), max((abs(p - q) for x, y in same for p, q in zip(x, y, strict=True)), default=0.0)


@torch.inference_mode()
def margins(model: Path, prompts: list[list[int]], a: Answers, b: Answers) -> None:
    """Of the three prompts that differ most: by how much, and how near a tie a router is there."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    apart = [max(abs(p - q) for p, q in zip(x, y, strict=True)) for (_, x), (_, y) in zip(a, b, strict=True)]
    for number in sorted(range(len(apart)), key=lambda i: -apart[i])[:3]:
        loaded(torch.tensor([prompts[number] + a[number][0][:-1]]))
        logits = [r.logits_TE.sort(-1, descending=True).values for r in loaded.retoken.routings.values()]
        top_k = loaded.retoken.config.top_k
        least = min(float((x[..., top_k - 1] - x[..., top_k]).min()) for x in logits)
        print(f"prompt {number}: apart by {apart[number]:.1e}, chosen and next logit by {least:.1e} or more")


def _reference(file: Path | None, make: Callable[[], Answers]) -> Answers:
    """Transformers' answers: those in the file, or new ones, which it then keeps."""
    if file is not None and file.exists():
        return [(tokens, logprobs) for tokens, logprobs in json.loads(file.read_text())]
    made = make()
    if file is not None:
        file.write_text(json.dumps(made))
    return made


def main() -> None:
    """One model and placement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--placement", type=json.loads, default={})
    parser.add_argument("--label", default="")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--reference", type=Path, help="keeps transformers' answers for the next call")
    parser.add_argument("--forced", action="store_true", help="transformers reads vLLM's answers in one pass")
    parser.add_argument("--margins", action="store_true", help="with a router that leaves some rows out")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("equality.csv"))
    asked = parser.parse_args()
    prompts = prompts_of(asked.data, asked.model, asked.prompts)
    wanted: Answers = []
    if not asked.forced:
        wanted = _reference(asked.reference, lambda: by_transformers(asked.model, prompts, asked.tokens))
    from vllm import LLM

    options = {"additional_config": {"retoken": asked.placement}} if asked.placement else {}
    llm = LLM(
        model=str(asked.model),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=64 + asked.tokens + 8,
        max_num_seqs=32,
        enforce_eager=not asked.compiled,
        enable_prefix_caching=False,
        **options,
    )
    new = not asked.out.exists()
    with asked.out.open("a", newline="") as file:
        table = csv.writer(file)
        if new:
            table.writerow("model placement compiled at_once prompts same_tokens max_dlogprob".split())
        for at_once in (1, 32):
            found = by_vllm(llm, prompts, asked.tokens, at_once)
            if asked.forced:
                wanted = of_transformers(asked.model, prompts, found)
            same, apart = compared(wanted, found)
            row = [asked.label or asked.model.name, json.dumps(asked.placement), asked.compiled, at_once]
            table.writerow([*row, len(prompts), same, f"{apart:.1e}"])
            print(*row, f"{same} of {len(prompts)} the same tokens, log-probabilities within {apart:.1e}")
    if asked.margins:
        margins(asked.model, prompts, wanted, found)


if __name__ == "__main__":
    main()
