"""The vertex of a known parabola, and what is said where there is none."""

import math

import pytest

from retoken.study.optimum import best_size

SIZES = (20_000, 40_000, 80_000, 160_000, 320_000)


def losses(best: float, curve: float = 0.1) -> dict[str, tuple[int, float]]:
    return {f"s{size}": (size, 4 + curve * math.log(size / best) ** 2) for size in SIZES}


@pytest.mark.parametrize("best", [45_000, 80_000, 100_000])
def test_the_vertex_of_a_parabola_is_found(best: float) -> None:
    found = best_size("dense", 1e12, losses(best))
    assert found.compute_params == pytest.approx(best, rel=1e-6)
    assert found.found == "vertex"
    assert found.nearest == min((f"s{s}" for s in SIZES), key=lambda n: abs(math.log(int(n[1:]) / best)))


@pytest.mark.parametrize("best", [5_000, 2_000_000])
def test_a_loss_that_falls_to_the_end_is_said_to(best: float) -> None:
    found = best_size("dense", 1e12, losses(best))
    assert found.found == "edge"
    assert found.nearest == ("s20000" if best < 20_000 else "s320000")


def test_two_sizes_are_no_parabola() -> None:
    found = best_size("dense", 1e12, {"a": (100, 5.0), "b": (200, 4.0)})
    assert (found.nearest, found.found, found.compute_params) == ("b", "edge", 200)


def test_a_curve_that_opens_downwards_is_not_believed() -> None:
    assert best_size("dense", 1e12, losses(80_000, curve=-0.1)).found == "edge"
