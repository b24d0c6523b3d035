"""The bench: its arithmetic, and that it times what it says."""

import pytest

from retoken.train import bench
from retoken.train.timing import Spread, interleaved, ratios


def test_spread_is_the_median_and_the_quartiles():
    assert Spread.of([1.0, 2.0, 3.0, 4.0, 100.0]) == Spread(median=3.0, low=2.0, high=4.0)


def test_ratios_are_taken_within_a_repeat():
    """A machine that is ten times slower in one repeat leaves the ratio alone."""
    assert ratios([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == Spread(median=2.0, low=2.0, high=2.0)


def test_cases_take_turns_back_and_forth():
    calls = []
    cases = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = interleaved(cases, repeats=3, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(found) for name, found in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_overhead_compares_the_loop_with_as_many_bare_steps(make, monkeypatch):
    steps = []
    real = bench.BareLoop.train
    monkeypatch.setattr(
        bench.BareLoop, "train", lambda self, n, clip: (steps.append((n, clip)), real(self, n, clip=clip))
    )
    found = bench.measure_overhead(make(variant="mort", log_every=2), segments=6)
    assert steps == [(2, False), (2, True), (2, True), (2, False)] * 3
    assert found.step_seconds.median > 0
    assert found.over_bare.median > -0.9


def test_throughput_times_every_variant_over_the_plain_one(make):
    found = bench.measure_throughput(make(), modes=("eager",), steps=1, repeats=2)
    assert [(rate.work, rate.variant) for rate in found] == [
        (work, variant) for work in ("forward", "training") for variant in bench.VARIANTS
    ]
    assert all(rate.over_plain.median == pytest.approx(1) for rate in found if rate.variant == "baseline")


def test_a_bare_step_is_the_loop_s_step(make, store):
    """What the bench times must be the real thing: the same weights come out."""
    from retoken.data.tokens import TokenStore
    from retoken.train.loop import train
    from retoken.train.setup import load_model
    from retoken.train.world import World

    config = make(variant="retoken", steps=3, schedule="ws", warmup_ratio=0)
    train(config)
    loop = bench.BareLoop(config, TokenStore.open(store), World())
    loop.train(3, clip=True)
    trained = load_model(config.out / "model").state_dict()
    assert all(trained[name].equal(value) for name, value in loop.model.state_dict().items())


def test_hotspots_are_sorted_shares_of_a_step(make):
    found = bench.hotspots(make(), steps=1, rows=5)
    assert len(found) == 5
    assert [spot.share for spot in found] == sorted((spot.share for spot in found), reverse=True)
    assert 0 < sum(spot.share for spot in found) <= 1


def test_steps_in_turns_are_held_to_the_base(make):
    configs = {name: make(variant=name, out=make().out / name) for name in ("baseline", "retoken")}
    found = bench.steps_over(configs, "baseline", steps=1, repeats=3)
    assert found.keys() == {"retoken"}
    assert 0 < found["retoken"].low <= found["retoken"].median <= found["retoken"].high
