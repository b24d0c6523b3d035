"""Differences paired by seed, their interval, and the words that follow from them."""

import math

import pytest

from retoken.compare.runs import RunRecord
from retoken.compare.stats import effects, mean_interval, spread, t95
from retoken.compare.verdict import detail, headline, listed, plus_minus, signed


def record(name: str, seed: int, loss: float, *, speed: float = 100.0, bits: float | None = 1.0) -> RunRecord:
    return RunRecord(
        name=name,
        seed=seed,
        val_loss=loss,
        val_bits_per_byte=bits,
        tokens=1000,
        backbone_params=10,
        table_params=0,
        stored_params=10,
        flops_per_token=60.0,
        train_seconds=1.0,
        tokens_per_second=speed,
        peak_memory_bytes=1,
    )


def runs(**losses: list[float]) -> list[RunRecord]:
    return [record(name, seed, loss) for name, row in losses.items() for seed, loss in enumerate(row)]


def test_spread_is_the_sample_standard_deviation_and_one_seed_has_none() -> None:
    assert spread([1.0, 3.0]).std == pytest.approx(math.sqrt(2))
    assert spread([1.0]).std is None


def test_the_interval_of_a_mean_is_students() -> None:
    mean, half = mean_interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert half == pytest.approx(4.303 * math.sqrt(7 / 3) / math.sqrt(3))
    assert plus_minus([1.0, 2.0, 4.0]) == "+2.333 ± 3.795"


def test_one_value_has_no_interval() -> None:
    assert mean_interval([1.5]) == (1.5, None)
    assert plus_minus([1.5], 1, sign="") == "1.5 ± ?"


def test_two_variants_give_the_paired_t_test() -> None:
    (effect,) = effects(runs(baseline=[5.0, 5.2, 5.1], retoken=[4.8, 5.05, 4.85]))
    differences = [-0.2, -0.15, -0.25]
    assert effect.differences == pytest.approx(differences)
    deviation = math.sqrt(sum((d + 0.2) ** 2 for d in differences) / 2)
    assert effect.half_width == pytest.approx(t95(2) * deviation / math.sqrt(3))


def test_noise_is_pooled_over_variants() -> None:
    found = effects(runs(baseline=[5.0, 5.1], retoken=[4.8, 4.92], mort=[4.6, 4.68]))
    assert [effect.name for effect in found] == ["retoken", "mort"]
    # Residuals of the 3 x 2 layout: seed steps .10, .12, .08 around .10 give +-0, +-.01, +-.01; freedom 2.
    mean_square = 4 * 0.01**2 / 2
    for effect in found:
        assert effect.half_width == pytest.approx(t95(2) * math.sqrt(2 * mean_square / 2))


def test_a_shared_shift_of_a_seed_is_no_noise() -> None:
    (effect,) = effects(runs(baseline=[5.0, 9.0], retoken=[4.9, 8.9]))
    assert effect.half_width == pytest.approx(0, abs=1e-9)
    assert effect.verdict == "helped"


def test_verdicts_follow_the_interval() -> None:
    def verdict(*losses: float) -> str:
        return effects(runs(baseline=[5.0, 5.0, 5.0], retoken=list(losses)))[0].verdict

    assert verdict(4.8, 4.81, 4.79) == "helped"
    assert verdict(5.2, 5.21, 5.19) == "hurt"
    assert verdict(4.8, 4.99, 4.9) == "undecided"
    assert verdict(5.1, 4.9, 5.0) == "undecided"


def test_one_seed_is_undecided_however_large_the_difference() -> None:
    (effect,) = effects(runs(baseline=[5.0], retoken=[1.0]))
    assert effect.verdict == "undecided"
    assert effect.half_width is None
    assert "one seed is no verdict" in headline([effect])
    assert "no interval" in detail([effect])


def test_only_seeds_that_both_finished_are_paired() -> None:
    records = [record("baseline", 0, 5.0), record("baseline", 1, 6.0), record("retoken", 1, 5.5)]
    (effect,) = effects(records)
    assert effect.seeds == (1,)
    assert effect.differences == (-0.5,)


def test_without_baseline_there_is_no_effect() -> None:
    assert effects(runs(retoken=[5.0], mort=[4.0])) == []
    assert "yet" in headline([])


def test_missing_bits_per_byte_stay_missing() -> None:
    records = [record("baseline", 0, 5.0, bits=None), record("retoken", 0, 4.0)]
    assert effects(records)[0].bits_per_byte is None


def test_speed_is_compared_within_a_seed() -> None:
    records = [record("baseline", 0, 5, speed=100), record("baseline", 1, 5, speed=10)]
    records += [record("retoken", 0, 5, speed=50), record("retoken", 1, 5, speed=10)]
    assert effects(records)[0].speed == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("retoken", "mort", "words"),
    [
        ([4.8, 4.81], [4.6, 4.61], "ReToken and MoRT lowered the held-out loss"),
        ([4.8, 4.81], [5.3, 5.31], "ReToken lowered the held-out loss; MoRT raised the held-out loss"),
        ([5.01, 4.99], [4.6, 4.6], "ReToken made no difference that these seeds can tell from noise"),
        ([4.9, 4.98], [5.1, 5.2], "ReToken ended below the baseline on every seed, by less than the spread"),
    ],
)
def test_headline(retoken: list[float], mort: list[float], words: str) -> None:
    assert words in headline(effects(runs(baseline=[5.0, 5.01], retoken=retoken, mort=mort)))


def test_numbers_in_words() -> None:
    assert signed(-0.1234) == "\N{MINUS SIGN}0.123"
    assert signed(0.0001) == "0.000"
    assert signed(2, 1) == "+2.0"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert t95(1) == pytest.approx(12.706) and t95(21) == pytest.approx(2.080, abs=0.01)
    assert t95(1000) == pytest.approx(1.962, abs=0.002)
