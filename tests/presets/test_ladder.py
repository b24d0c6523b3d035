"""Backbones by a spelled-out name: the arithmetic of their sizes is that of their modules."""

import pytest

from retoken import presets
from retoken.errors import ConfigError
from retoken.presets import ladder


@pytest.mark.parametrize(
    "name", ["llama-32x2", "llama-80x5", "llama-128x3", "moe-32x2", "moe-96x4", "moe-160x3"]
)
def test_compute_params_are_the_modules(name: str) -> None:
    kind, size = name.split("-")
    width, layers = map(int, size.split("x"))
    counts = presets.count(presets.get(name))
    assert counts.compute_params == ladder.compute_params(kind, width, layers)  # type: ignore[arg-type]


def test_a_mixtures_token_uses_about_what_it_does_in_the_dense_backbone() -> None:
    dense, mixture = (presets.count(presets.get(f"{kind}-64x4")) for kind in ("llama", "moe"))
    assert mixture.compute_params == pytest.approx(dense.compute_params, rel=0.1)
    assert mixture.total_params > 2 * dense.total_params


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("llama-40x2", "multiple of 16"),
        ("llama-144x2", "multiple of 32"),
        ("moe-32x1", "layers from 2"),
        ("llama-0x2", "multiple of 16"),
        ("lama-32x2", "llama-WIDTHxLAYERS"),
    ],
)
def test_other_names_are_refused_with_the_rule(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        presets.get(name)
