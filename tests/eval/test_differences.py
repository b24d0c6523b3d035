"""Differences on the same documents: what they are, and intervals that mean what they say."""

from pathlib import Path

import numpy as np
import pytest

from retoken.errors import ConfigError
from retoken.eval.differences import (
    against,
    check_comparable,
    difference,
    mean_difference,
    resampled_means,
)
from retoken.eval.results import Item, Metric, ResultsFolder, TaskResult
from retoken.eval.scores import mean_score, scores

SETTINGS = {"checkpoint": "abc", "harness": "lm-eval 1", "data": "hub", "limit": 0}


def test_an_interval_is_as_wide_as_the_normal_one_for_many_items() -> None:
    values = np.random.default_rng(3).normal(0.2, 1.3, size=(1500, 1))
    found = difference(values.mean(), resampled_means(values, "piqa")[:, 0])
    half = 1.96 * values.std(ddof=1) / np.sqrt(1500)
    assert found.mean == values.mean()
    assert found.low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.06 * half)


def test_two_items_have_the_interval_of_four_draws() -> None:
    means = resampled_means(np.array([[0.0], [1.0]]), "x")[:, 0]
    shares = [float((means == value).mean()) for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert len(means) == 10_000


def test_an_interval_does_not_depend_on_what_else_is_measured() -> None:
    values = np.random.default_rng(0).normal(size=(40, 2))
    both, one = resampled_means(values, "piqa"), resampled_means(values[:, :1], "piqa")
    assert np.array_equal(both[:, 0], one[:, 0])
    assert not np.array_equal(one, resampled_means(values[:, :1], "sciq"))
    assert not np.array_equal(one, resampled_means(values[:, :1], "piqa", seed=1))


def test_many_items_are_drawn_in_blocks_without_loss() -> None:
    values = np.random.default_rng(1).normal(size=(3001, 1))
    means = resampled_means(values, "piqa", resamples=1501)
    assert means.shape == (1501, 1)
    assert means.std() == pytest.approx(values.std() / np.sqrt(3001), rel=0.1)


def test_benchmarks_count_once_each_in_their_mean() -> None:
    draws = {"a": np.array([0.0, 0.2, 0.4]), "b": np.array([1.0, 1.0, 1.0])}
    found = mean_difference({"a": 0.2, "b": 1.0}, draws)
    assert found.mean == pytest.approx(0.6)
    assert (found.low, found.high) == pytest.approx((0.505, 0.695))


def _write(folder: ResultsFolder, task: str, values: list[float], bits: list[float] | None = None) -> None:
    items = tuple(
        Item(
            hash=f"{task}-{n}",
            gold=0,
            log_likelihoods=(-1.0,),
            values={"acc": value},
            gold_bits_per_byte=bits[n] if bits else None,
        )
        for n, value in enumerate(values)
    )
    metric = Metric(value=float(np.mean(values)), stderr=0.5)
    folder.write(TaskResult(task=task, metrics={"acc": metric}, items=items, about={"cut": 1}))


@pytest.fixture
def two(tmp_path: Path) -> tuple[ResultsFolder, ResultsFolder]:
    ours = ResultsFolder.claim(tmp_path / "ours", SETTINGS, "ours")
    return ours, ResultsFolder.claim(tmp_path / "theirs", SETTINGS | {"checkpoint": "d"}, "theirs")


def test_a_benchmark_of_several_tasks_is_their_documents_together(
    two: tuple[ResultsFolder, ResultsFolder],
) -> None:
    ours, _ = two
    _write(ours, "mmlu_a", [1, 1, 1], [1.0, 2.0, 3.0])
    _write(ours, "mmlu_b", [0], [6.0])
    found, single = scores(ours, {"mmlu": ("mmlu_a", "mmlu_b"), "mmlu_a": ("mmlu_a",)})
    assert (found.n, found.value, found.gold_bits_per_byte, found.cut) == (4, 0.75, 3.0, 2)
    assert found.stderr == pytest.approx(0.25)
    assert single.stderr == 0.5, "of one task the harness's own"
    assert mean_score((found, single)) == pytest.approx(0.875)


def test_differences_are_ours_minus_theirs_and_zero_for_the_same(
    two: tuple[ResultsFolder, ResultsFolder],
) -> None:
    ours, theirs = two
    for folder, shift in ((ours, 0.0), (theirs, 0.5)):
        _write(folder, "piqa", [1, 0, 1, 1], [1.0 + shift, 2.0 + shift, 3.0, 4.0])
        _write(folder, "sciq", [1 - 2 * shift, 0, 1, 1])
    benchmarks = {"piqa": ("piqa",), "sciq": ("sciq",)}
    found = against(ours, theirs, benchmarks, scores(ours, benchmarks))
    assert (found.metric["piqa"].low, found.metric["piqa"].mean, found.metric["piqa"].high) == (0, 0, 0)
    assert found.metric["sciq"].mean == 0.25 and found.metric["sciq"].low == 0.0
    assert found.bits["piqa"].mean == -0.25 and found.bits["piqa"].low == -0.5
    assert "sciq" not in found.bits and found.mean_bits is None
    assert found.mean is not None and found.mean.mean == 0.125


def test_other_documents_are_refused(two: tuple[ResultsFolder, ResultsFolder]) -> None:
    ours, theirs = two
    _write(ours, "piqa", [1, 0, 1])
    benchmarks = {"piqa": ("piqa",)}
    with pytest.raises(ConfigError, match="theirs has no piqa"):
        check_comparable(SETTINGS, ["piqa"], theirs)
    with pytest.raises(ConfigError, match=r"theirs has limit 0; accepted: 5"):
        check_comparable(SETTINGS | {"limit": 5}, [], theirs)
    _write(theirs, "piqa", [1, 0])
    with pytest.raises(ConfigError, match="has 2 documents of piqa; accepted: the same 3"):
        against(ours, theirs, benchmarks, scores(ours, benchmarks))
    item = Item(hash="x", gold=0, log_likelihoods=(), values={"acc": 1.0}, gold_bits_per_byte=None)
    mixed = TaskResult(
        task="piqa", metrics=ours.read("piqa").metrics, items=(*ours.read("piqa").items[:2], item)
    )
    theirs.write(mixed)
    with pytest.raises(ConfigError, match="another document 2 of piqa"):
        against(ours, theirs, benchmarks, scores(ours, benchmarks))
