"""Log-likelihoods of several continuations of one context, with the context computed once.

The questions of multiple-choice benchmarks are asked once for every choice: put to the model one by one, the
question is computed again for each. Here a question's keys and values are kept and shared by its choices, and
logits are made for the positions that are scored only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

Tokens = Sequence[int]
Answer = tuple[float, bool]
"""Nats, and whether each token is the likeliest."""
_NOT_SCORED = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A context and what may follow it."""

    context: Tokens
    continuations: tuple[Tokens, ...]
    numbers: tuple[int, ...]
    """Which requests they are."""


def questions(requests: Sequence[tuple[Tokens, Tokens]], most: int) -> list[Question]:
    """Requests (context, continuation) by context, in order of appearance.

    Args:
        requests: tokens, neither side empty.
        most: continuations of a question; where a context has more, it makes several questions.
    """
    found: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, (context, _) in enumerate(requests):
        found[tuple(context)].append(number)
    return [
        Question(
            context=context,
            continuations=tuple(requests[number][1] for number in part),
            numbers=tuple(part),
        )
        for context, numbers in found.items()
        for part in (numbers[at : at + most] for at in range(0, len(numbers), most))
    ]


def batches(asked: Sequence[Question], most: int) -> Iterator[list[Question]]:
    """Questions whose contexts are of one length, so that nothing is padded before what is scored.

    The longest come first: what does not fit into memory fails at once.

    Args:
        asked: in any order.
        most: continuations of a batch, and of each question.
    """
    batch: list[Question] = []
    for question in sorted(asked, key=_length, reverse=True):
        full = sum(len(each.continuations) for each in batch) + len(question.continuations) > most
        if batch and (full or len(batch[0].context) != len(question.context)):
            yield batch
            batch = []
        batch.append(question)
    if batch:
        yield batch


def _length(question: Question) -> tuple[int, int]:
    return len(question.context), max(map(len, question.continuations))


@torch.inference_mode()
def log_likelihoods(model: Any, batch: Sequence[Question]) -> list[Answer]:
    """Answers of all continuations of a batch, question by question.

    Args:
        model: a causal language model of transformers whose passes may use a cache.
        batch: questions whose contexts have one length.
    """
    device = model.device
    owner = [at for at, question in enumerate(batch) for _ in question.continuations]
    continuations = [tokens for question in batch for tokens in question.continuations]
    contexts = torch.tensor([list(question.context) for question in batch], device=device)
    before = model(input_ids=contexts, use_cache=True, logits_to_keep=1)
    first = torch.tensor([[tokens[0]] for tokens in continuations], device=device)
    nats, likeliest = _scores(before.logits[owner], first)
    longer = [at for at, tokens in enumerate(continuations) if len(tokens) > 1]
    if longer:
        cache = before.past_key_values
        cache.batch_select_indices(torch.tensor([owner[at] for at in longer], device=device))
        fed, wanted = _padded([continuations[at] for at in longer], device)
        logits = model(input_ids=fed, past_key_values=cache, use_cache=True).logits
        more, all_likeliest = _scores(logits, wanted)
        nats[longer] += more
        likeliest[longer] &= all_likeliest
    return list(zip(nats.tolist(), likeliest.tolist(), strict=True))


def _padded(continuations: Sequence[Tokens], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """What is fed and what is scored, ``[N, T]`` each; padding comes last, and reaches nothing before it."""
    width = max(map(len, continuations)) - 1
    fed = torch.zeros(len(continuations), width, dtype=torch.long)
    wanted = torch.full_like(fed, _NOT_SCORED)
    for row, tokens in enumerate(continuations):
        fed[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
        wanted[row, : len(tokens) - 1] = torch.tensor(tokens[1:])
    return fed.to(device), wanted.to(device)


def _scores(logits: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of log-likelihoods in nats, and whether all are the likeliest, ``[N]`` of ``[N, T, V]``.

    The softmax is in float32: of bfloat16 logits a log-likelihood has two digits otherwise.
    """
    flat = F.cross_entropy(
        logits.flatten(0, 1).float(), wanted.flatten(), ignore_index=_NOT_SCORED, reduction="none"
    )
    likeliest = (logits.argmax(dim=-1) == wanted) | (wanted == _NOT_SCORED)
    return -flat.view_as(wanted).sum(dim=1), likeliest.all(dim=1)
