"""The vocabulary grows and shrinks with the backbone's; ids without rows are an error."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import retoken
from retoken.attach.rivals import BigramConfig
from retoken.errors import AttachError
from retoken.testing import VOCAB, WIDTH, assert_close, randomize, tiny_model, token_ids

NEW = VOCAB + 6


def _attached(config, **kwargs):
    model = retoken.attach(tiny_model("llama", **kwargs), config)
    randomize(model.retoken)
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_are_neutral(main_config, tied):
    """A text of new tokens only gives what the backbone gives, and old tokens are gated as before."""
    model = _attached(main_config, tie_word_embeddings=tied)
    old = token_ids()
    before = model(input_ids=old).logits
    model.resize_token_embeddings(NEW, mean_resizing=False)
    assert_close("old ids", before, model(input_ids=old).logits[..., :VOCAB], units=4)
    new = torch.randint(VOCAB, NEW, (2, 5))
    modulated = model(input_ids=new).logits
    for module in retoken.modulators(model).values():
        assert module.table.weight.shape[0] == NEW
        assert not module.lookup(torch.arange(VOCAB, NEW)).any()
    assert torch.equal(modulated, retoken.detach(model)(input_ids=new).logits)


def test_new_rows_learn(main_config):
    model = _attached(main_config)
    model.resize_token_embeddings(NEW, mean_resizing=False)
    model(input_ids=torch.full((1, 3), NEW - 1)).logits.square().sum().backward()
    for module in retoken.modulators(model).values():
        grad = module.table.weight.grad
        assert grad[NEW - 1].isfinite().all() and grad[NEW - 1].abs().max() > 0 and not grad[:VOCAB].any()


def test_a_zero_row_is_no_trap(configs):
    """Its first gradient is large (gain / eps); a step of bounded size moves it off zero, no further."""
    model = _attached(configs["retoken"])
    model.resize_token_embeddings(NEW, mean_resizing=False)
    tables = [m.table.weight for m in retoken.modulators(model).values()]
    optimizer = torch.optim.AdamW(tables, lr=0.01, weight_decay=0.0)
    for _ in range(3):
        model(input_ids=torch.full((1, 3), NEW - 1)).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    rows = torch.stack([t[NEW - 1] for t in tables])
    assert rows.isfinite().all() and 0 < rows.abs().max() < 0.1


def test_shrinking_keeps_the_first_rows(main_config):
    model = _attached(main_config)
    kept = {i: m.table.weight[:50].clone() for i, m in retoken.modulators(model).items()}
    model.resize_token_embeddings(50)
    for layer, module in retoken.modulators(model).items():
        assert torch.equal(module.table.weight, kept[layer])
    assert model(input_ids=token_ids(vocab=50)).logits.shape[-1] == 50


def test_padding_to_a_multiple(configs):
    model = _attached(configs["retoken"])
    model.resize_token_embeddings(VOCAB, pad_to_multiple_of=64)
    assert {m.table.vocab_size for m in retoken.modulators(model).values()} == {192}


def test_the_same_size_changes_nothing(configs):
    """An optimizer holds the parameters: asking for the size there is must not replace them."""
    model = _attached(configs["mort"])
    before = [m.table.weight for m in retoken.modulators(model).values()]
    model.resize_token_embeddings(VOCAB)
    model.resize_token_embeddings()
    after = [m.table.weight for m in retoken.modulators(model).values()]
    assert all(a is b for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    "config",
    [retoken.ReTokenConfig(index="bigram"), retoken.MoRTConfig.by_token_and_bigram(2), BigramConfig()],
    ids=["bigram", "token_bigram", "rival"],
)
def test_hashes_go_by_the_size_and_are_not_resized(config, tmp_path):
    """A new token would read a hashed row, and a checkpoint of the new size would have other tables."""
    model = _attached(config)
    logits = model(input_ids=token_ids()).logits
    model.resize_token_embeddings(VOCAB)
    model.resize_token_embeddings()
    for options in ({"new_num_tokens": NEW}, {"new_num_tokens": 50}, {"pad_to_multiple_of": 64}):
        with pytest.raises(AttachError, match=r"vocabulary of 131 tokens, not .* accepted: resize_token_emb"):
            model.resize_token_embeddings(**options)
    assert model.config.vocab_size == VOCAB
    model.save_pretrained(tmp_path)
    assert_close(
        "logits", logits, AutoModelForCausalLM.from_pretrained(tmp_path)(token_ids()).logits, units=64
    )


def test_resizing_keeps_dtype_and_freezing(configs):
    model = _attached(configs["retoken"], dtype=torch.bfloat16)
    model.retoken.requires_grad_(False)
    model.resize_token_embeddings(NEW, mean_resizing=False)
    table = retoken.modulators(model)[0].table.weight
    assert table.dtype == torch.bfloat16 and not table.requires_grad and table.shape == (NEW, WIDTH)


@pytest.mark.parametrize("size", [NEW, 50])
def test_a_resized_model_is_saved_and_loaded(main_config, size, tmp_path):
    model = _attached(main_config, tie_word_embeddings=True)
    model.resize_token_embeddings(size, mean_resizing=False)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs = loaded.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in model.state_dict().items())
    assert loaded.config.vocab_size == size


def test_resized_before_attach(configs):
    backbone = tiny_model("gpt2")
    backbone.resize_token_embeddings(NEW, mean_resizing=False)
    model = retoken.attach(backbone, configs["retoken"])
    assert retoken.modulators(model)[0].table.vocab_size == NEW


def test_tied_embeddings_stay_tied_and_learn_once(configs):
    model = _attached(configs["retoken"], tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert retoken.detach(model).lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("bad", [VOCAB, 10_000, -1])
def test_an_id_without_a_row_is_named(main_config, bad):
    model = _attached(main_config)
    ids = token_ids()
    ids[1, 3] = bad
    with pytest.raises(
        AttachError, match=rf"input_ids range over .*{bad}.*rows for 0\.\.{VOCAB - 1}"
    ) as caught:
        model(input_ids=ids)
    assert "\n" not in str(caught.value)


def test_an_empty_sequence_is_no_error_of_ours(configs):
    model = _attached(configs["retoken"])
    assert model.retoken._check_ids(torch.empty(1, 0, dtype=torch.long)) is None
