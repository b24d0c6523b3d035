"""A context that several continuations share is computed once: answers stay those of one pass a request."""

import pytest
import torch

import retoken
from retoken.eval.shared_contexts import Answer, Question, batches, log_likelihoods, questions
from retoken.testing import VOCAB, randomize, tiny_model

LENGTHS = ((9, (3, 1, 4)), (9, (2,)), (9, (5, 6)))
CONFIGS = {
    "baseline": None,
    "retoken": retoken.ReTokenConfig(),
    "mort": retoken.MoRTConfig(num_modulators=3, top_k=2, injection_delay=1),
}


def batch() -> list[Question]:
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, VOCAB, (count,), generator=generator).tolist())

    return [
        Question(
            context=draw(context), continuations=tuple(map(draw, lengths)), numbers=tuple(range(len(lengths)))
        )
        for context, lengths in LENGTHS
    ]


@torch.no_grad()
def one_by_one(model: torch.nn.Module, asked: list[Question]) -> list[Answer]:
    """Each request by itself, from its first token on."""
    found = []
    for question in asked:
        for continuation in question.continuations:
            ids = torch.tensor([[*question.context, *continuation]])
            scores = model(input_ids=ids).logits[0, len(question.context) - 1 : -1].log_softmax(-1)
            wanted = torch.tensor(continuation)
            nats = scores.gather(1, wanted[:, None]).sum()
            found.append((float(nats), bool((scores.argmax(-1) == wanted).all())))
    return found


@pytest.mark.parametrize("variant", CONFIGS)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "qwen2_moe"])
def test_answers_are_those_of_one_pass_a_request(family: str, variant: str) -> None:
    model = tiny_model(family)
    if (config := CONFIGS[variant]) is not None:
        randomize(retoken.attach(model, config).retoken)
    answers = log_likelihoods(model, batch())
    expected = one_by_one(model, batch())
    assert [nats for nats, _ in answers] == pytest.approx([nats for nats, _ in expected], abs=2e-5)
    assert [likeliest for _, likeliest in answers] == [likeliest for _, likeliest in expected]


def test_what_is_likeliest_is_said_of_whole_continuations() -> None:
    model = tiny_model("llama")
    context = batch()[0].context
    with torch.no_grad():
        ids = torch.tensor([context])
        for _ in range(3):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    greedy = tuple(ids[0, len(context) :].tolist())
    other = (*greedy[:2], (greedy[2] + 1) % VOCAB)
    asked = Question(context=context, continuations=(greedy, other, other[:2]), numbers=(0, 1, 2))
    assert [likeliest for _, likeliest in log_likelihoods(model, [asked])] == [True, False, True]


def test_requests_are_gathered_by_context_and_batches_by_its_length() -> None:
    a, b, c = (5, 6), (7, 8), (9,)
    asked = questions([(a, (1,)), (b, (2,)), (a, (3, 4)), (c, (5,)), (a, (6,))], 2)
    assert [(each.context, each.numbers) for each in asked] == [(a, (0, 2)), (a, (4,)), (b, (1,)), (c, (3,))]
    got = [[question.numbers for question in each] for each in batches(asked, 2)]
    assert got == [[(0, 2)], [(4,), (1,)], [(3,)]]
