"""`retoken train`: the preset's recipe with the given options, one line of progress, and exit codes."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

import retoken
from retoken.attach.rivals import EngramConfig
from retoken.cli.main import main
from retoken.cli.options import parse
from retoken.cli.train import Train
from retoken.cli.train_view import TrainView
from retoken.errors import ConfigError
from retoken.train import TrainConfig

SHORT = [
    "--steps",
    "4",
    "--batch-size",
    "4",
    "--context-length",
    "32",
    "--eval-tokens",
    "600",
    "--threads",
    "1",
]


def config(*args: str) -> TrainConfig:
    command = parse(Train, "retoken train", [*args])
    assert command is not None
    return command.config()


def test_options_stand_in_for_the_preset_s():
    found = config(
        "cpu-xs", "--data", "d", "--variant", "mort", "--mort.top-k", "2", "--lr", "0.5", "--seed", "7"
    )
    recipe = retoken.presets.get("cpu-xs").recipe
    assert found.lr == 0.5 and found.batch_size == recipe.batch_size and found.total_steps == recipe.steps
    assert found.attached == retoken.MoRTConfig(top_k=2)
    assert found.out == Path("out/cpu-xs-mort-seed7")
    assert config("CPU-XS", "--data", "d").preset == "cpu-xs"
    assert config("--model", "some/folder", "--data", "d", "--steps", "3").out == Path(
        "out/folder-baseline-seed0"
    )


def test_a_rival_s_size():
    found = config("cpu-xs", "--data", "d", "--variant", "engram", "--size", "2", "--steps", "3")
    assert found.attached == EngramConfig(size=2.0)


def test_the_best_that_was_found():
    found = config("cpu-xs", "--data", "d", "--variant", "additive_both", "--size", "5", "--mort.norm", "l2")
    wanted = {
        "num_modulators": 1,
        "top_k": 1,
        "balance_coef": 0.0,
        "index": "token_bigram",
        "index_size": 4.0,
    }
    assert found.attached == retoken.MoRTConfig(norm="l2", **wanted) and found.variant == "mort"
    assert found.out == Path("out/cpu-xs-additive_both-seed0")
    found = config("cpu-xs", "--data", "d", "--variant", "additive_both", "--size", "3")
    assert found.attached == retoken.MoRTConfig.by_token_and_bigram(3)
    with pytest.raises(ConfigError, match="size is 1; accepted: above 1"):
        retoken.MoRTConfig.by_token_and_bigram(1)


@pytest.mark.parametrize(
    "args, says",
    [
        (["--data", "d"], "preset is missing; accepted: dense-s"),
        (["cpu-xs", "--data", "d", "--steps", "3", "--tokens", "9"], "--steps and --tokens are both given"),
        (["cpu-xs", "--data", "d", "--mort.top-k", "2"], "--mort.* is given with --variant baseline"),
        (["cpu-xs", "--data", "d", "--model", "m"], "accepted: exactly one of the two"),
        (
            ["cpu-xs", "--data", "d", "--variant", "jtok"],
            "variant is 'jtok'; accepted: baseline, retoken, mort",
        ),
        (
            ["cpu-xs", "--data", "d", "--variant", "mort", "--size", "2"],
            "--size is given with --variant mort; accepted: a rival",
        ),
        (
            ["cpu-xs", "--data", "d", "--variant", "value", "--size", "2"],
            "--size is given with --variant value",
        ),
        (
            ["cpu-xs", "--data", "d", "--variant", "additive_both"],
            "size is 1 with additive_both; accepted: above",
        ),
        (
            ["cpu-xs", "--data", "d", "--variant", "wide"],
            "variant is 'wide'; accepted: baseline, retoken, mort",
        ),
        (
            ["cpu-xs", "--data", "d", "--variant", "engram", "--retoken.norm", "l2"],
            "--retoken.* is given with --variant engram",
        ),
    ],
)
def test_contradictions(args, says):
    with pytest.raises(ConfigError) as caught:
        config(*args)
    assert says in str(caught.value)


def test_a_run_and_its_exit_codes(tiny_store, tmp_path, capsys):
    args = [
        "train",
        "demo",
        "--data",
        str(tiny_store),
        "--out",
        str(tmp_path / "run"),
        *SHORT,
        "--variant",
        "retoken",
    ]
    assert main([*args, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {
        k: v for k, v in json.loads((tmp_path / "run" / "result.json").read_text()).items() if k in printed
    }
    assert main(args) == 0
    assert "held-out loss" in capsys.readouterr().out
    assert main([*args, "--lr", "0.1"]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1 and "is of a run with lr 0.003, not 0.1" in complaint


def test_sigterm_exits_130_and_says_where_it_goes_on(tiny_store, tmp_path):
    out = tmp_path / "run"
    args = [
        "demo",
        "--data",
        str(tiny_store),
        "--out",
        str(out),
        *SHORT,
        "--steps",
        "2000",
        "--log-every",
        "1",
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "retoken", "train", *args]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env)
    until(
        lambda: (out / "metrics.jsonl").exists() and len((out / "metrics.jsonl").read_text().splitlines()) > 3
    )
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=120)
    assert process.returncode == 130
    last = complaint.strip().splitlines()[-1]
    assert re.fullmatch(
        rf"retoken train: interrupted: stopped behind step \d+ of 2000; {out} goes on from there", last
    )
    assert len(list((out / "checkpoints").iterdir())) == 1
    assert not (out / "result.json").exists()


def until(done, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


EVENTS = [
    {"kind": "start", "step": 0, "total_steps": 4, "tokens_per_step": 128},
    {"kind": "train", "step": 2, "loss": 3.25, "tokens_per_second": 12345.6},
    {"kind": "eval", "step": 2, "val_loss": 3.5},
    {"kind": "checkpoint", "step": 2, "path": "x"},
]


def test_a_terminal_gets_one_live_line(tmp_path):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120, color_system=None)
    with TrainView(TrainConfig(out=tmp_path, data=tmp_path, preset="demo", steps=4), console) as view:
        for event in EVENTS:
            view.event(event)
    text = screen.getvalue()
    assert "step 2/4" in text and "loss 3.250  12,346 tok/s  held-out 3.500" in text and "left" in text


def test_elsewhere_only_evaluations_speak(tmp_path, capsys):
    console = Console(file=io.StringIO(), force_terminal=False)
    with TrainView(TrainConfig(out=tmp_path, data=tmp_path, preset="demo", steps=4), console) as view:
        for event in EVENTS:
            view.event(event)
    assert capsys.readouterr().err == "step 2 of 4  loss 3.250  12,346 tok/s  held-out 3.500\n"
