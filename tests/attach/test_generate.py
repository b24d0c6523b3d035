"""Generation in every way that `generate` offers equals what the full forward pass says."""

import logging

import pytest
import torch
from transformers import PreTrainedTokenizerFast, StaticCache, pipeline

import retoken
from retoken.testing import VOCAB, assert_close, randomize, tiny_model, token_ids

FAMILIES = ["llama", "gpt2", "gemma2", "gpt_neox", "qwen3_moe"]
NEW = 6


BY_BIGRAM = {
    "token_bigram": retoken.MoRTConfig.by_token_and_bigram(2),
    "bigram": retoken.ReTokenConfig(index="bigram"),
}


@pytest.fixture(params=["retoken", "mort", "mort-block_input-delay-subset", *BY_BIGRAM], ids=str)
def config(request, configs):
    return (configs | BY_BIGRAM)[request.param]


@pytest.fixture
def model(config, request):
    return _attached(config, getattr(request, "param", "llama"))


def _attached(config, family="llama", **kwargs):
    model = retoken.attach(tiny_model(family, **kwargs), config)
    randomize(model.retoken)
    model.generation_config.eos_token_id = None
    return model


def _greedy_without_cache(model, ids):
    """The argmax of one full forward pass after the other."""
    with torch.no_grad():
        for _ in range(NEW):
            ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids


def _generate(model, ids, **kwargs):
    return model.generate(
        input_ids=ids, max_new_tokens=NEW, pad_token_id=0, **({"do_sample": False} | kwargs)
    )


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
def test_greedy(model):
    ids = token_ids()
    assert torch.equal(_generate(model, ids), _greedy_without_cache(model, ids))


def test_modulation_changes_what_is_generated(configs):
    plain = tiny_model("llama")
    assert not torch.equal(
        _generate(plain, token_ids()), _generate(_attached(configs["retoken"]), token_ids())
    )


def test_beam_search_with_cache_equals_without(model):
    ids = token_ids()
    options = {
        "num_beams": 3,
        "num_return_sequences": 2,
        "output_scores": True,
        "return_dict_in_generate": True,
    }
    out = [_generate(model, ids, use_cache=cache, **options) for cache in (True, False)]
    assert torch.equal(out[0].sequences, out[1].sequences)
    assert_close("beam scores", out[1].sequences_scores, out[0].sequences_scores)
    score = _log_probability(model, out[0].sequences[:1], ids.shape[1])
    assert_close("best beam's score", score / NEW, out[0].sequences_scores[0])


def _log_probability(model, sequence, prompt):
    with torch.no_grad():
        logs = model(input_ids=sequence).logits.log_softmax(-1)
    taken = logs[0, :-1].gather(-1, sequence[0, 1:, None]).squeeze(-1)
    return taken[prompt - 1 :].sum()


def test_sampling_with_cache_equals_without(model):
    out = []
    for cache in (True, False):
        torch.manual_seed(0)
        out.append(_generate(model, token_ids(), do_sample=True, top_k=20, use_cache=cache))
    assert torch.equal(*out)


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
def test_left_padded_prompts_equal_the_prompts_alone(model):
    prompts = [token_ids(1, n, seed=n) for n in (3, 8, 5)]
    batch = torch.cat([torch.nn.functional.pad(p, (8 - p.shape[1], 0)) for p in prompts])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(p), (8 - p.shape[1], 0)) for p in prompts])
    out = _generate(model, batch, attention_mask=mask)
    for row, prompt in zip(out, prompts, strict=True):
        assert torch.equal(row[8:], _generate(model, prompt)[0, prompt.shape[1] :])


@pytest.mark.parametrize("model", ["llama", "gemma2", "qwen3_moe"], indirect=True)
def test_static_cache(model):
    ids = token_ids()
    out = _generate(model, ids, cache_implementation="static", disable_compile=True)
    assert torch.equal(out, _greedy_without_cache(model, ids))


def test_static_cache_by_hand(model):
    """Chunks of any length against a cache allocated beforehand."""
    ids = token_ids(2, 9)
    cache = StaticCache(config=model.config, max_cache_len=12)
    with torch.no_grad():
        full = model(input_ids=ids).logits
        parts = [
            model(input_ids=x, past_key_values=cache, use_cache=True).logits
            for x in ids.split((4, 1, 3, 1), 1)
        ]
    assert_close("logits", full, torch.cat(parts, 1), units=128)


def test_assisted_generation(model, configs):
    assistant = _attached(configs["retoken"], seed=5)
    ids = token_ids(1, 7)
    assert torch.equal(_generate(model, ids, assistant_model=assistant), _generate(model, ids))


def test_prompt_lookup(model):
    ids = token_ids(1, 4).repeat(1, 3)
    assert torch.equal(_generate(model, ids, prompt_lookup_num_tokens=3), _generate(model, ids))


def test_chunked_prefill(model):
    ids = token_ids()
    assert torch.equal(_generate(model, ids, prefill_chunk_size=3), _generate(model, ids))


def test_after_a_round_trip(model, tmp_path):
    from transformers import AutoModelForCausalLM

    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(_generate(model, token_ids()), _generate(loaded, token_ids()))


@pytest.fixture
def tokenizer():
    """Words w0 to w130, id for id."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")


def test_pipeline(model, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    prompts = ["w9 w10 w11", "w7"]
    options = {"max_new_tokens": NEW, "do_sample": False, "return_full_text": False}
    texts = generator(prompts, batch_size=2, **options)
    for prompt, text in zip(prompts, texts, strict=True):
        ids = torch.tensor([[int(w[1:]) for w in prompt.split()]])
        expected = _generate(model, ids)[0, ids.shape[1] :]
        assert text[0]["generated_text"].split() == [f"w{i}" for i in expected.tolist()]
    assert "not supported" not in caplog.text
