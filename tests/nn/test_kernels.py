"""What modulators compute with: plain operators until `use_kernels`, then Triton kernels, interpreted."""

import copy
import re
from pathlib import Path

import pytest
import torch

import retoken
from retoken import ops
from retoken.errors import AttachError, ConfigError
from retoken.nn.kernels import OPERATORS, TRACED
from retoken.testing import randomize, tiny_model, token_ids

ROOT = Path(__file__).parents[2]


def _attached(config, **options):
    model = retoken.attach(tiny_model("llama", **options), config)
    randomize(model.retoken)
    return model


def test_interpreted_models_equal_eager_ones(python):
    """tests/nn/models_run.py, every one of its tests."""
    pytest.importorskip("triton")
    words = ["-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "tests/nn/models_run.py"]
    ran = python(*words, TRITON_INTERPRET="1")
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    last = ran.stdout.strip().splitlines()[-1]
    passed = re.match(r"(\d+) passed", last)
    assert passed and int(passed[1]) > 40, last


@pytest.mark.parametrize("config", [retoken.ReTokenConfig(), retoken.MoRTConfig()], ids=["retoken", "mort"])
@pytest.mark.parametrize("folded", [False, True])
def test_every_model_starts_with_the_plain_operators(config, folded, tmp_path):
    model = _attached(config).eval()
    if folded:
        retoken.fold(model)
    model.save_pretrained(tmp_path)
    for each in (model, copy.deepcopy(model), type(model).from_pretrained(tmp_path), retoken.load(tmp_path)):
        assert all(module.kernels.name == "eager" for module in retoken.modulators(each).values())
    assert all(module.kernels is OPERATORS for module in retoken.modulators(model).values())


def test_the_default_is_the_operators_bit_for_bit():
    """Forward and backward of a module are the two calls that they always were."""
    states, ids = torch.randn(2, 7, 32), token_ids()
    gate = retoken.modulators(_attached(retoken.ReTokenConfig()))[0]
    rows = gate.table.weight[ids]
    assert torch.equal(gate(states, ids), ops.gate(states, rows, gate.scale, gate.gain, gate.eps))
    mort = retoken.modulators(_attached(retoken.MoRTConfig()))[0]
    landing, routing = mort(states, ids)
    mixed = mort.table.mix(ids, routing.chosen_TK, routing.weights_TK)
    residual = ops.residual(mixed, mort.scale, mort.gain, mort.eps)
    assert torch.equal(landing.tensor(), residual)
    assert torch.equal(landing.add_to(states), states + residual)


def test_what_cannot_be_used_is_refused():
    model = _attached(retoken.ReTokenConfig())
    with pytest.raises(ConfigError, match="kernels is 'cuda'; accepted: eager, triton, traced"):
        retoken.use_kernels(model, "cuda")
    with pytest.raises(AttachError, match="carries no token-indexed parameters"):
        retoken.use_kernels(tiny_model("llama"), "eager")
    assert all(module.kernels is OPERATORS for module in retoken.modulators(model).values())


def test_traced_ones_are_told_by_name():
    model = _attached(retoken.MoRTConfig(injection_delay=1))
    retoken.use_kernels(model, "traced")
    assert all(module.kernels is TRACED for module in retoken.modulators(model).values())
    retoken.use_kernels(model, "eager")
    assert all(module.kernels is OPERATORS for module in retoken.modulators(model).values())


def test_what_the_kernels_do_not_take_is_refused():
    pytest.importorskip("triton")
    with pytest.raises(
        ConfigError, match=r"layers\.0\.scale is float64; accepted: float32, bfloat16, float16"
    ):
        retoken.use_kernels(_attached(retoken.ReTokenConfig(), dtype=torch.float64), "triton")
    wide = _attached(retoken.ReTokenConfig(layers=(0,)))
    wide.retoken.layers["0"].table.weight = torch.nn.Parameter(torch.zeros(2, 8193))
    with pytest.raises(ConfigError, match="rows are 8193 numbers wide; accepted: up to 8192"):
        retoken.use_kernels(wide, "triton")


def test_a_cpu_that_does_not_interpret_is_told_at_the_first_pass():
    pytest.importorskip("triton")
    model = _attached(retoken.ReTokenConfig())
    retoken.use_kernels(model, "triton")
    with pytest.raises(ValueError, match="the kernels run on a GPU, or under TRITON_INTERPRET=1"):
        model(input_ids=token_ids())


def test_a_delayed_residual_keeps_the_operators():
    pytest.importorskip("triton")
    model = _attached(retoken.MoRTConfig(injection_delay=1))
    retoken.use_kernels(model, "triton")
    assert all(module.kernels is OPERATORS for module in retoken.modulators(model).values())


def test_without_triton_they_are_refused(python):
    code = """
import sys
sys.modules["triton"] = None
import retoken
from retoken.testing import tiny_model
model = retoken.attach(tiny_model("llama"), retoken.ReTokenConfig())
retoken.use_kernels(model, "eager")
try:
    retoken.use_kernels(model, "triton")
except retoken.errors.ConfigError as error:
    print(error)
"""
    ran = python("-c", code)
    assert "Triton is not installed; accepted: 'eager', or pip install 'triton>=3.5'" in ran.stdout, (
        ran.stderr
    )
