"""The bench of GPU kernels without a GPU: what it counts and writes, and its cases, interpreted."""

import csv
import re

import pytest
import torch

from retoken.cli.main import main
from retoken.train.timing import Spread

pytest.importorskip("triton")

from retoken.bench import kernels
from retoken.bench.kernels import KernelShape

CASES = """
import torch
from retoken.bench import kernels
kernels.GPU = torch.device("cpu")
for operation in ("gate", "mix"):
    for what in ("forward", "training"):
        shape = kernels.KernelShape(operation=operation, what=what, tokens=6, width=40)
        with torch.set_grad_enabled(what == "training"):
            case = kernels.Case(shape)
            ways = case.ways(compiled=False)
            results = {name: way() for name, way in ways.items()}
        if what == "training":
            for ours, theirs in zip(results["triton"], results["eager"], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=3e-2, atol=3e-2)
        print(operation, what, *results)
"""


def shape(operation="gate", what="forward", tokens=16, width=8):
    return KernelShape(operation=operation, what=what, tokens=tokens, width=width)


def test_cases_compute_the_same_by_every_way(python):
    ran = python("-c", CASES, TRITON_INTERPRET="1")
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.splitlines() == [
        f"{operation} {what} triton eager"
        for operation in ("gate", "mix")
        for what in ("forward", "training")
    ]


def test_the_bound_counts_every_tensor_once():
    row = 16 * 8 * 2
    assert shape().bound_bytes == 3 * row
    assert shape("mix").bound_bytes == 4 * row
    table = 8 * 8 * 2
    # forward; then the output's gradient, the increment and the row are read, one gradient a token is written
    assert shape(what="training").bound_bytes == 3 * row + 4 * row + table
    assert shape("mix", "training").bound_bytes == 4 * row + 3 * row + 4 * table


def test_a_line_a_way_is_written(tmp_path):
    times = {"triton": [10.0, 10.0, 20.0], "eager": [40.0, 50.0, 60.0]}
    rates = list(kernels._rates(shape(tokens=1000, width=1000), times, bandwidth=1e12))
    assert [rate.way for rate in rates] == ["triton", "eager"]
    assert rates[1].triton_is_faster == Spread(median=4.0, low=3.5, high=4.5)
    assert rates[0].of_bandwidth == pytest.approx(6e6 / 1e12 / 10e-6)
    kernels.write(tmp_path / "out.csv", "a GPU", 1e12, rates)
    with (tmp_path / "out.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["device"], line["way"], line["microseconds_median"]) for line in lines] == [
        ("a GPU", "triton", "10"),
        ("a GPU", "eager", "50"),
    ]


def test_results_that_differ_are_refused(monkeypatch):
    class Wrong(kernels.Case):
        def __init__(self):
            self.shape = shape()

        def eager(self):
            return torch.ones(3)

        def triton(self):
            return 1.1 * torch.ones(3)

    with pytest.raises(kernels.RetokenError, match=r"triton is 0\.1 away from eager operators"):
        Wrong().ways(compiled=False)


def test_a_training_step_has_fewer_rows_at_hand():
    assert shape().rows == 50304 and shape(what="training").rows == 8


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--repeats", "1"], "--repeats is 1; accepted: from 2"),
        (["--tokens", "0"], r"--tokens is \[0\]; accepted: one or more, numbers from 1"),
        (["--widths", "9000"], "--widths has 9000; accepted: up to 8192"),
        (["--csv", "nowhere/x.csv"], "--csv is nowhere/x.csv, whose folder does not exist"),
    ],
)
def test_options_that_are_refused(words, said, capsys):
    assert main(["bench", "kernels", *words]) != 0
    assert re.search(said, capsys.readouterr().err)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert main(["bench", "kernels"]) != 0
    assert "PyTorch finds no" in capsys.readouterr().err
