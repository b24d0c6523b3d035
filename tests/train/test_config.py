"""What a training configuration refuses, in one line, and its way through JSON."""

import json
from pathlib import Path

import pytest

import retoken
from retoken import presets
from retoken.errors import ConfigError
from retoken.train import TrainConfig

GOOD = {"out": Path("run"), "data": Path("store"), "preset": "cpu-xs", "steps": 10}


@pytest.mark.parametrize(
    "options, says",
    [
        ({"preset": ""}, "preset is '' and model is ''; accepted: exactly one of the two"),
        ({"model": "folder"}, "exactly one of the two"),
        ({"variant": "jtok"}, "variant is 'jtok'; accepted: baseline, retoken, mort"),
        ({"dtype": "float16"}, "dtype is 'float16'; accepted: float32, bfloat16"),
        ({"compile": "yes"}, "compile is 'yes'; accepted: auto, on, off"),
        ({"device": "tpu"}, "device is 'tpu'; accepted: auto, cpu, cuda"),
        ({"schedule": "linear"}, "schedule is 'linear'; accepted: cosine, wsd, ws"),
        ({"lr": 0.0}, "lr is 0.0; accepted: above 0"),
        ({"lr": float("nan")}, "lr is nan; accepted: above 0"),
        ({"batch_size": 0}, "batch_size is 0; accepted: above 0"),
        (
            {"steps": 0, "tokens": 100},
            "tokens is 100 and steps is 0; accepted: steps from 1, or tokens from 8192",
        ),
        ({"batch_size": 8, "micro_batch_size": 3}, "micro_batch_size is 3; accepted: a divisor of 8"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; accepted: 0 or more"),
        ({"betas": (0.9, 1.0)}, "betas is (0.9, 1.0); accepted: two numbers from 0 to below 1"),
        ({"warmup_ratio": 2.0}, "warmup_ratio is 2.0; accepted: 0 to 1"),
        ({"keep": 0}, "keep is 0; accepted: above 0"),
        ({"seed": -1}, "seed is -1; accepted: 0 or more"),
        ({"seed": 1.5}, "seed is 1.5; accepted: an integer"),
        (
            {"variant": "mort", "modulator": retoken.ReTokenConfig()},
            "modulator is a retoken config with variant 'mort'",
        ),
        ({"modulator": retoken.MoRTConfig()}, "modulator is a mort config with variant 'baseline'"),
        ({"trains": "attached"}, "trains is 'attached' with variant 'baseline'; accepted there: 'all'"),
        ({"trains": "tables"}, "trains is 'tables'; accepted: all, attached"),
    ],
)
def test_refusals_name_the_option_what_was_found_and_what_is_accepted(options, says):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**(GOOD | options))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", ["baseline", "retoken", "mort"])
def test_json_and_back(variant):
    config = TrainConfig(**GOOD, variant=variant, betas=(0.8, 0.99), decay_ratio=0.5)
    back = TrainConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert back.to_dict() == config.to_dict()
    assert back.attached == config.attached


def test_a_dict_of_something_else_is_refused():
    values = TrainConfig(**GOOD).to_dict()
    for wrong, says in (
        ({"type": "mort"}, "found no 'type': 'train'"),
        (values | {"format_version": 9}, "format_version is 9; accepted: 1"),
        (values | {"lrr": 1}, "option 'lrr' of a training config is unknown"),
    ):
        with pytest.raises(ConfigError, match=says):
            TrainConfig.from_dict(wrong)


def test_tokens_make_steps():
    config = TrainConfig(**(GOOD | {"steps": 0, "tokens": 100_000}))
    assert config.total_steps == 100_000 // (32 * 256) == 12
    assert config.tokens_per_step == 8192


def test_every_preset_s_recipe_is_one_of_ours():
    for name in presets.names():
        recipe = presets.get(name).recipe
        config = TrainConfig(out=Path("x"), data=Path("x"), preset=name, **recipe.to_dict())
        assert config.total_steps == recipe.steps
