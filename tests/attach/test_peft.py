"""LoRA from PEFT on top of an attached model, with the tables frozen, and with the tables trained along."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

import retoken
from retoken.testing import assert_close, assert_grads_close, randomize, tiny_model, token_ids

peft = pytest.importorskip("peft")  # an optional dependency


def _attached(config):
    model = retoken.attach(tiny_model("llama"), config)
    randomize(model.retoken)
    return model


def _lora(model, **options):
    targets = ["q_proj", "v_proj", "down_proj"]
    return peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=targets, **options))


def _train(model, steps=2):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()
    for step in range(steps):
        ids = token_ids(seed=step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def test_a_new_adapter_changes_nothing(main_config):
    model, ids = _attached(main_config), token_ids()
    before = model(input_ids=ids).logits
    adapted = _lora(model)
    assert torch.equal(adapted(input_ids=ids).logits, before)
    assert not any(p.requires_grad for n, p in adapted.named_parameters() if "retoken" in n)


def test_frozen_tables(main_config):
    model, ids = _attached(main_config), token_ids()
    tables = copy.deepcopy(model.retoken.state_dict())
    adapted = _lora(model)
    before = adapted(input_ids=ids).logits
    _train(adapted)
    after = adapted(input_ids=ids).logits
    assert not torch.equal(before, after)
    assert all(torch.equal(v, tables[k]) for k, v in model.retoken.state_dict().items())
    with adapted.disable_adapter():
        assert torch.equal(adapted(input_ids=ids).logits, before)
    assert_close("merged", after, adapted.merge_and_unload()(input_ids=ids).logits, units=64)


def test_trained_tables_are_the_ones_the_forward_uses(main_config):
    model, ids = _attached(main_config), token_ids()
    before = model(input_ids=ids).logits
    adapted = _lora(model, modules_to_save=["retoken"])
    names = [n for n, p in adapted.named_parameters() if p.requires_grad and "retoken" in n]
    assert names and all("modules_to_save.default" in n for n in names)
    adapted(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in adapted.named_parameters():
        if name in names:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    adapted.zero_grad()
    _train(adapted)
    assert all(m.scale.requires_grad for m in retoken.modulators(adapted).values())
    with torch.no_grad():
        for module in retoken.modulators(adapted).values():
            module.scale.zero_()
    unmodulated = adapted(input_ids=ids).logits
    with adapted.disable_adapter():
        assert torch.equal(adapted(input_ids=ids).logits, before)
    assert not torch.allclose(unmodulated, before, atol=1e-2)


def test_trained_tables_learn_what_they_learn_without_peft(main_config):
    """The same gradients as a model whose only trained parameters are its modulators."""
    model = _attached(main_config)
    alone = copy.deepcopy(model).train()
    adapted = _lora(model, modules_to_save=["retoken"]).train()
    for name, parameter in alone.named_parameters():
        parameter.requires_grad_(name.startswith("retoken."))
    ids = token_ids()
    for one in (alone, adapted):
        one(input_ids=ids, labels=ids).loss.backward()
    copy_in_use = adapted.base_model.model.retoken.modules_to_save["default"]
    assert_grads_close(alone.retoken, copy_in_use)
    assert torch.equal(retoken.balance_loss(alone), retoken.balance_loss(adapted))
    totals = {layer: load for layer, load in retoken.router_loads(adapted).items()}
    with retoken.batch_load(adapted, totals):
        assert_close("balance loss", retoken.balance_loss(alone), retoken.balance_loss(adapted))


def test_param_groups_of_an_adapted_model(configs):
    adapted = _lora(_attached(configs["mort"]), modules_to_save=["retoken"])
    groups = retoken.param_groups(adapted)
    assert all("retoken" in n for role in ("tables", "scales", "routers") for n, _ in groups[role])
    trained = [n for n, p in groups["tables"] if p.requires_grad]
    assert len(trained) == 3
    assert any("lora_A" in n for n, _ in groups["backbone"])


@pytest.mark.parametrize("tables", ["frozen", "trained"])
def test_saving_and_loading_an_adapter(tables, main_config, tmp_path):
    model = _attached(main_config)
    model.save_pretrained(tmp_path / "base")
    adapted = _lora(model, **({"modules_to_save": ["retoken"]} if tables == "trained" else {}))
    _train(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    ids = token_ids()
    assert_close("logits", adapted(input_ids=ids).logits, loaded(input_ids=ids).logits, units=64)


@pytest.mark.parametrize("tables", ["frozen", "trained"])
def test_merged_models_are_saved_with_the_pinned_keys(tables, configs, tmp_path):
    adapted = _lora(
        _attached(configs["mort"]), **({"modules_to_save": ["retoken"]} if tables == "trained" else {})
    )
    _train(adapted)
    ids = token_ids()
    expected = adapted(input_ids=ids).logits
    merged = adapted.merge_and_unload()
    assert_close("merged", expected, merged(input_ids=ids).logits, units=64)
    merged.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_close("loaded", expected, loaded(input_ids=ids).logits, units=64)
    assert_close("detached", merged.lm_head.weight, retoken.detach(merged).lm_head.weight)


def test_generation_and_activation_checkpointing_with_an_adapter(configs):
    adapted = _lora(_attached(configs["mort-delay"]), modules_to_save=["retoken"])
    plain = copy.deepcopy(adapted)
    enable = getattr(adapted.base_model.model, "activation_checkpointing_enable", None)
    (enable or adapted.base_model.model.gradient_checkpointing_enable)({"use_reentrant": False})
    ids = token_ids()
    for model in (plain, adapted):
        model.train()(input_ids=ids, labels=ids).loss.backward()
    assert_grads_close(plain, adapted)
    adapted.eval()
    out = adapted.generate(
        input_ids=ids, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    with torch.no_grad():
        full = adapted(input_ids=out, use_cache=False).logits.argmax(-1)
    assert torch.equal(out[:, 7:], full[:, 6:-1])


def test_prompt_tuning_hides_the_ids_and_says_so(configs):
    """Virtual tokens are embeddings without ids."""
    options = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    adapted = peft.get_peft_model(_attached(configs["retoken"]), options)
    with pytest.raises(retoken.errors.AttachError, match="found inputs_embeds only"):
        adapted(input_ids=token_ids())
