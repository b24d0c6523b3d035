"""Names, recipes and configurations of presets."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from retoken import presets
from retoken.errors import ConfigError
from retoken.presets import Recipe
from retoken.presets.cpu import demo
from retoken.train.config import TrainConfig

CPU = [preset.name for preset in presets.presets() if preset.group == "cpu"]


def test_names_are_unique_and_found() -> None:
    names = presets.names()
    assert len(set(names)) == len(names)
    assert all(presets.get(name).name == name for name in names)
    assert {"demo", "cpu-xs", "cpu-s", "cpu-m", "cpu-l", "cpu-moe", "17b-a2b"} <= set(names)


def test_case_does_not_matter() -> None:
    assert presets.get("A110m-T1.3b").name == "a110m-t1.3b"


@pytest.mark.parametrize(("asked", "meant"), [("dense_xl", "dense-xl"), ("demp", "demo"), ("cpus", "cpu-s")])
def test_an_unknown_name_lists_the_names_and_the_closest(asked: str, meant: str) -> None:
    with pytest.raises(ConfigError) as caught:
        presets.get(asked)
    message = str(caught.value)
    assert repr(asked) in message and f"did you mean {meant}?" in message
    assert "\n" not in message
    assert all(name in message for name in presets.names())


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        presets.get("0000")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", presets.names())
def test_recipes_are_options_of_a_training_run(name: str, tmp_path) -> None:
    recipe = presets.get(name).recipe
    config = TrainConfig(out=tmp_path, data=tmp_path, preset=name, **recipe.to_dict())
    assert config.total_steps == recipe.steps
    assert config.lr_schedule().total_steps == recipe.steps


@pytest.mark.parametrize("name", CPU)
def test_cpu_presets_train(name: str) -> None:
    """One step on a small vocabulary: finite loss near ln V, and a gradient for every parameter."""
    preset = presets.get(name)
    assert preset.recipe.tokens % preset.recipe.tokens_per_step == 0
    assert preset.recipe.steps > preset.recipe.eval_every > 0
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(preset.hf_config(vocab_size=64))
    ids = torch.randint(0, 64, (4, 64))
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert abs(loss.item() - torch.tensor(64.0).log().item()) < 0.5
    assert all(p.grad is not None for p in model.parameters())


def test_the_small_preset_is_the_published_trials_size() -> None:
    """jtok_notes: 2.9M parameters with embeddings, d 128, 4 layers, vocabulary 8192, 1.6M tokens."""
    preset = presets.get("cpu-s")
    assert round(presets.count(preset).backbone_params / 1e6, 1) == 2.9
    assert (preset.backbone["hidden_size"], preset.backbone["num_hidden_layers"]) == (128, 4)
    assert (preset.vocab_size, round(preset.recipe.tokens / 1e6, 1)) == (8192, 1.6)


def test_presets_share_no_state() -> None:
    presets.get("demo").backbone["hidden_size"] = 7  # pyright: ignore
    assert presets.get("demo").backbone["hidden_size"] == demo().backbone["hidden_size"] != 7


def test_the_vocabulary_can_be_the_corpuss() -> None:
    preset = presets.get("demo")
    assert preset.hf_config().vocab_size == preset.vocab_size
    assert preset.hf_config(vocab_size=77).vocab_size == 77
    with pytest.raises(ConfigError, match="vocab_size is 0"):
        preset.hf_config(vocab_size=0)


GOOD = {
    **{"tokens": 1000, "batch_size": 2, "context_length": 8, "lr": 1e-3},
    **{"min_lr_ratio": 0.1, "schedule": "cosine"},
}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"schedule": "linear"}, "schedule is 'linear'; accepted: cosine, wsd, ws"),
        ({"schedule": "ws"}, "decay_ratio is 0.95 with schedule ws"),
        ({"warmup_ratio": 0.2}, "warmup_ratio \\+ decay_ratio is 1.15"),
    ],
)
def test_a_wrong_recipe_is_refused(wrong: dict, named: str) -> None:
    Recipe(**GOOD)
    with pytest.raises(ConfigError, match=named):
        Recipe(**{**GOOD, **wrong})


@pytest.mark.parametrize(
    ("name", "given", "held", "decays"),
    [
        ("cpu-s", {}, 0, 760),
        ("cpu-s", {"schedule": "wsd"}, 600, 160),
        ("cpu-s", {"schedule": "ws"}, 760, 0),
        ("cpu-s", {"warmup_ratio": 0.1}, 0, 720),
        ("cpu-s", {"schedule": "wsd", "decay_ratio": 0.5}, 360, 400),
        ("a250m-t3b", {"schedule": "cosine"}, 0, None),
    ],
)
def test_another_schedule_brings_its_own_decay(
    name: str, given, held: int, decays: int | None, tmp_path
) -> None:
    values = presets.get(name).recipe.under(given)
    schedule = TrainConfig(out=tmp_path, data=tmp_path, preset=name, **values).lr_schedule()
    rest = schedule.total_steps - schedule.warmup_steps
    assert schedule.decay_steps == (rest if decays is None else decays)
    assert rest - schedule.decay_steps == held
