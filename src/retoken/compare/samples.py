"""Texts a trained model writes: every variant continues the same openings of held-out documents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retoken.checkpoint.files import write_json
from retoken.compare.runs import SAMPLES_FILE
from retoken.data.tokens import TokenSplit, TokenStore

PROMPTS = 4
PROMPT_TOKENS = 16
NEW_TOKENS = 48
TEMPERATURE = 0.8
SEED = 0
"""Four prompts, how long each is, how much is written, how boldly, and the seed of the first draw."""


def write_samples(run: Path, data: Path) -> None:
    """Generate from the model in ``RUN/model`` and write ``RUN/samples.json``.

    Args:
        run: A finished run folder.
        data: The token store it was trained on; prompts come from its held-out split.
    """
    from retoken.train.setup import load_model

    store = TokenStore.open(data)
    model, tokenizer = load_model(run / "model").eval(), store.tokenizer()
    documents = openings(store.split("val"), store.manifest.eos_id, PROMPT_TOKENS + NEW_TOKENS)
    samples = [_sample(model, tokenizer, ids, SEED + number) for number, ids in enumerate(documents)]
    settings = {"new_tokens": NEW_TOKENS, "temperature": TEMPERATURE, "seed": SEED}
    write_json(run / SAMPLES_FILE, {"format_version": 1, "settings": settings, "samples": samples})


def openings(split: TokenSplit, eos_id: int, length: int, count: int = PROMPTS) -> list[list[int]]:
    """First tokens of long documents, spread evenly over the split; the split's start where there is none."""
    ids = torch.from_numpy(split.read(0, min(len(split), 4_000_000)).astype("int64"))
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), (ids == eos_id).nonzero().flatten() + 1])
    ends = torch.cat([starts[1:], torch.tensor([len(ids)])])
    long = [int(start) for start, end in zip(starts, ends, strict=True) if end - start > length] or [0]
    chosen = dict.fromkeys(long[index * len(long) // count] for index in range(count))
    return [ids[start : start + length].tolist() for start in chosen]


@torch.no_grad()
def _sample(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, document: Sequence[int], seed: int
) -> dict[str, Any]:
    ids = torch.tensor([document[:PROMPT_TOKENS]])
    prompt, whole = _text(tokenizer, ids[0]), _text(tokenizer, document)
    return {
        "prompt": prompt.lstrip(),
        "truth": whole.removeprefix(prompt).rstrip(),
        "greedy": _text(tokenizer, _generate(model, ids, seed, do_sample=False)).strip(),
        "sampled": _text(
            tokenizer, _generate(model, ids, seed, do_sample=True, temperature=TEMPERATURE)
        ).strip(),
        "temperature": TEMPERATURE,
    }


def _generate(model: PreTrainedModel, prompt: torch.Tensor, seed: int, **options: Any) -> torch.Tensor:
    """New token ids only; drawn from the whole distribution where they are drawn."""
    torch.manual_seed(seed)
    end = model.config.eos_token_id
    options |= {"attention_mask": torch.ones_like(prompt), "max_new_tokens": NEW_TOKENS, "pad_token_id": end}
    if options["do_sample"]:
        options |= {"top_k": 0, "top_p": 1.0}
    generate = cast(Any, model).generate  # pyright takes no PreTrainedModel for one that can generate
    return generate(prompt, **options)[0, prompt.shape[1] :]


def _text(tokenizer: PreTrainedTokenizerBase, ids: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))
