"""Learning-rate schedules: their ends, their corners, and what they refuse."""

import math

import pytest

from retoken.errors import ConfigError
from retoken.optim import Schedule, lr_factor


def factors(**options: object) -> list[float]:
    schedule = Schedule(total_steps=100, **options)  # pyright: ignore
    return [lr_factor(schedule, step) for step in range(100)]


def test_warm_up_rises_in_a_line_and_moves_at_the_first_step():
    rates = factors(shape="ws", warmup_ratio=0.05)
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5:] == [1.0] * 95


def test_cosine_is_half_a_cosine_from_the_peak_to_the_minimum():
    rates = factors(shape="cosine", warmup_ratio=0.05, decay_ratio=0.95, min_lr_ratio=0.1)
    assert max(rates) == rates[4] == 1.0
    assert rates[-1] == pytest.approx(0.1)
    middle = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 48 / 95))
    assert rates[52] == pytest.approx(middle)
    assert rates == factors(shape="cosine", warmup_ratio=0.05, min_lr_ratio=0.1), (
        "all behind the warm-up is the default"
    )


def test_wsd_is_stable_and_then_falls_in_a_line():
    rates = factors(shape="wsd", warmup_ratio=0.1, decay_ratio=0.2, min_lr_ratio=0.0)
    assert rates[10:80] == [1.0] * 70
    assert rates[80:] == pytest.approx([1 - i / 20 for i in range(1, 21)])
    assert rates == factors(shape="wsd", warmup_ratio=0.1, min_lr_ratio=0.0)


def test_one_step_runs_at_the_peak_or_the_minimum_but_not_at_nothing():
    assert lr_factor(Schedule(shape="cosine", total_steps=1), 0) == pytest.approx(0.1)
    assert lr_factor(Schedule(shape="ws", total_steps=1), 0) == 1.0


@pytest.mark.parametrize(
    "options, names",
    [
        ({"shape": "linear"}, "schedule is 'linear'; accepted: cosine, wsd, ws"),
        ({"shape": "cosine", "warmup_ratio": 1.5}, "warmup_ratio is 1.5"),
        (
            {"shape": "cosine", "warmup_ratio": 0.2, "decay_ratio": 0.9},
            "decay_ratio is 0.9; accepted: 0 to 0.8",
        ),
        ({"shape": "ws", "decay_ratio": 0.1}, "schedule ws, which does not decay"),
        ({"shape": "cosine", "min_lr_ratio": -0.1}, "min_lr_ratio is -0.1"),
    ],
)
def test_refusals(options, names):
    with pytest.raises(ConfigError, match=names):
        Schedule(total_steps=10, **options)
