"""torch.compile: the same training, and "auto" decides by the run alone."""

import functools
from pathlib import Path

import pytest
import torch

from retoken import presets
from retoken.train import TrainConfig
from retoken.train.compiled import compile_for, pays
from retoken.train.loop import train


def recipe(name: str, **options) -> TrainConfig:
    values = presets.get(name).recipe.to_dict() | options
    return TrainConfig(out=Path("x"), data=Path("x"), preset=name, **values)


def test_auto_compiles_what_runs_long():
    assert not pays(recipe("cpu-xs"), presets.count(presets.get("cpu-xs")), "cpu")
    assert pays(recipe("cpu-xs", steps=100_000), presets.count(presets.get("cpu-xs")), "cpu")
    assert pays(recipe("dense-s"), presets.count(presets.get("dense-s")), "cpu")
    assert not pays(recipe("cpu-xs", steps=10), presets.count(presets.get("cpu-xs")), "cuda")
    assert pays(recipe("cpu-xs", steps=1000), presets.count(presets.get("cpu-xs")), "cuda")


def test_auto_leaves_mixtures_alone():
    assert not pays(recipe("cpu-moe", steps=10**9), presets.count(presets.get("cpu-moe")), "cpu")


def test_off_and_a_missing_compiler_leave_the_model_as_it_is(monkeypatch):
    from torch import nn

    model, counts = nn.Linear(1, 1), presets.count(presets.get("cpu-xs"))
    assert compile_for(recipe("cpu-xs", compile="off", steps=10**9), model, counts) is model
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert compile_for(recipe("cpu-xs", compile="auto", steps=10**9), model, counts) is model


@pytest.mark.parametrize("variant", ["mort"])
def test_a_compiled_run_trains_the_same(make, tmp_path, variant, monkeypatch):
    """With the graphs that the compiler would get; turning them into C++ would take minutes here."""
    monkeypatch.setattr("torch.compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr("shutil.which", lambda name: name)
    eager, compiled = (
        make(out=tmp_path / mode, variant=variant, compile=mode, steps=4, context_length=8)
        for mode in ("off", "on")
    )
    a, b = train(eager), train(compiled)
    assert b.val_loss == pytest.approx(a.val_loss, rel=1e-4)
