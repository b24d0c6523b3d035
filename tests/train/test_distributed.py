"""Plain data parallelism: two gloo processes train what one trains, and stop and resume together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import retoken
from retoken.checkpoint import read
from retoken.testing import assert_close, run_distributed
from retoken.train import TrainConfig
from retoken.train.loop import train


def run_ranks(rank: int, world_size: int, values: dict, stop_at: int = 0) -> str:
    """One rank of a run; the last rank is sent SIGTERM at `stop_at`, so that the first must hear of it."""
    config = TrainConfig.from_dict(values)
    if rank == world_size - 1 and stop_at:
        _signal_at(stop_at)
    try:
        return str(train(config).steps)
    except KeyboardInterrupt as stopped:
        return str(stopped)


def _signal_at(step: int) -> None:
    import signal

    from retoken.train.step import Stepper

    real, done = Stepper.step, []

    def counted(self, windows, upcoming=None):
        done.append(1)
        if len(done) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, windows, upcoming)

    Stepper.step = counted  # this process is the rank's own


def lines(out: Path, kind: str) -> list[dict]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


MORT = retoken.MoRTConfig(balance_coef=1.0)


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "mort", "modulator": MORT, "micro_batch_size": 1},
        {"variant": "mort", "modulator": MORT},
        {"variant": "retoken", "eval_every": 6},
    ],
)
def test_two_processes_train_what_one_trains(make, tmp_path, options):
    """The same batches in the same order, Eq. 21 over the batch of both; only the order of sums differs."""
    one, two = (make(out=tmp_path / name, **options) for name in ("one", "two"))
    train(one)
    assert run_distributed(run_ranks, 2, two.to_dict()) == ["12", "12"]
    for kind, key in (("train", "loss"), ("eval", "val_loss"), ("train", "grad_norm")):
        ours, theirs = ([line[key] for line in lines(config.out, kind)] for config in (two, one))
        assert ours == pytest.approx(theirs, rel=2e-4)
    a, b = (load_file(config.out / "model" / "model.safetensors") for config in (one, two))
    for name in a:
        assert_close(name, a[name], b[name], units=40_000)
    results = [json.loads((config.out / "result.json").read_text()) for config in (one, two)]
    assert results[0]["stored_params"] == results[1]["stored_params"]
    counts = [load_file(config.out / "token_loss.safetensors")["count"] for config in (one, two)]
    assert counts[0].equal(counts[1])


def test_one_signalled_process_stops_both_and_they_resume_bit_equal(make, tmp_path):
    whole, stopped = (make(out=tmp_path / name, variant="retoken") for name in ("whole", "stopped"))
    run_distributed(run_ranks, 2, whole.to_dict())
    answers = run_distributed(run_ranks, 2, stopped.to_dict(), 7)
    assert len(set(answers)) == 1 and answers[0].startswith("stopped behind step 7 of 12")
    assert run_distributed(run_ranks, 2, stopped.to_dict()) == ["12", "12"]
    a, b = (read(c.out / "checkpoints" / "step-000012").tensors().read_all() for c in (whole, stopped))
    assert a.keys() == b.keys() and "rng.1.cpu" in a
    assert all(a[key].equal(b[key]) for key in a)


def test_torchrun_runs_the_command(make, store, tmp_path):
    out = tmp_path / "torchrun"
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "retoken",
        "train",
    ]
    options = [
        "cpu-xs",
        "--data",
        store,
        "--out",
        out,
        "--steps",
        "3",
        "--batch-size",
        "4",
        "--context-length",
        "16",
    ]
    done = subprocess.run(
        [sys.executable, *command, *map(str, options), "--eval-tokens", "400", "--json"],
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["steps"] == 3


def test_a_batch_that_does_not_split_over_the_processes_is_refused(make):
    with pytest.raises(RuntimeError, match="batch_size is 3 with 2 processes; accepted: a multiple of 2"):
        run_distributed(run_ranks, 2, make(batch_size=3).to_dict())
