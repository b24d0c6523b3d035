"""The sizes the papers print must come out of the configurations, at the precision they are printed with."""

from __future__ import annotations

import pytest

from retoken import presets
from retoken.config import MoRTConfig, ReTokenConfig
from retoken.presets import Counts

MORT = MoRTConfig(num_modulators=5, top_k=3)


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, Counts]]:
    """{preset: {"retoken", "mort"}} of every preset of the papers."""
    backbones = {p.name: presets.Backbone.of(p) for p in presets.presets() if p.group == "paper"}
    return {
        name: {"retoken": b.count(ReTokenConfig()), "mort": b.count(MORT)} for name, b in backbones.items()
    }


def printed(value: float, unit: float, digits: int) -> float:
    """`value` as it would be printed in `unit`s with `digits` decimals."""
    return round(value / unit, digits)


@pytest.mark.parametrize(
    ("name", "published", "unit", "digits"),
    [
        ("dense-s", 190, 1e6, -1),
        ("dense-m", 0.5, 1e9, 1),
        ("dense-l", 1, 1e9, 0),
        ("dense-xl", 1.5, 1e9, 1),
        ("17b-a2b", 17, 1e9, 0),
    ],
)
def test_all_parameters(counted, name: str, published: float, unit: float, digits: int) -> None:
    assert printed(counted[name]["retoken"].backbone_params, unit, digits) == published


@pytest.mark.parametrize(
    ("name", "total", "total_digits", "activated", "unit", "digits"),
    [
        ("a110m-t1.3b", 1.3, 1, 110, 1e6, -1),
        ("a250m-t3b", 3, 0, 250, 1e6, -1),
        ("17b-a2b", 17, 0, 2, 1e9, 0),
    ],
)
def test_mixtures_without_embeddings_and_head(
    counted, name: str, total: float, total_digits: int, activated: float, unit: float, digits: int
) -> None:
    counts = counted[name]["mort"]
    assert printed(counts.total_params, 1e9, total_digits) == total
    assert printed(counts.compute_params, unit, digits) == activated


@pytest.mark.parametrize(
    ("name", "variant", "published", "digits"),
    [
        ("dense-s", "retoken", 0.46, 2),
        ("dense-m", "retoken", 1.24, 2),
        ("dense-l", "retoken", 2.32, 2),
        ("dense-xl", "retoken", 6.5, 1),
        ("a110m-t1.3b", "retoken", 0.93, 2),
        ("a110m-t1.3b", "mort", 4.7, 1),
        ("a250m-t3b", "retoken", 2.1, 1),
        ("a250m-t3b", "mort", 10.5, 1),
        ("17b-a2b", "mort", 43.6, 1),
    ],
)
def test_tables(counted, name: str, variant: str, published: float, digits: int) -> None:
    assert printed(counted[name][variant].table_params, 1e9, digits) == published


def test_the_abstracts_sums(counted) -> None:
    """JTok's abstract: 650M (190M + 460M) to 61B (17B + 44B)."""
    assert printed(counted["dense-s"]["retoken"].stored_params, 1e6, -1) == 650
    assert printed(counted["17b-a2b"]["mort"].stored_params, 1e9, 0) == 61


def test_flops_with_tables_are_almost_the_backbones(counted) -> None:
    """The papers' claim, and that the tables' part is not simply nothing."""
    for name, variants in counted.items():
        for counts in variants.values():
            assert 0 < counts.table_flops_per_token < 1e-3 * counts.backbone_flops_per_token, name
        assert variants["mort"].flops_per_token > variants["retoken"].flops_per_token


TABLES_8_AND_9 = {
    "dense-s": (1024, 4096, 100e9, 1e-3, 1e-4, "cosine", 0.95),
    "dense-m": (1024, 4096, 100e9, 8e-4, 8e-5, "cosine", 0.95),
    "dense-l": (1024, 4096, 100e9, 6e-4, 6e-5, "cosine", 0.95),
    "dense-xl": (8192, 512, 330e9, 6e-4, 0.0, "ws", 0.0),
    "a110m-t1.3b": (8192, 1024, 300e9, 4.2e-4, 4.2e-4, "ws", 0.0),
    "a250m-t3b": (8192, 1024, 500e9, 4.2e-4, 4.2e-4, "ws", 0.0),
}


@pytest.mark.parametrize("name", TABLES_8_AND_9)
def test_recipes_are_the_printed_ones(name: str) -> None:
    recipe = presets.get(name).recipe
    context, batch, tokens, lr, min_lr, schedule, decay = TABLES_8_AND_9[name]
    assert (recipe.context_length, recipe.batch_size, recipe.tokens) == (context, batch, tokens)
    assert recipe.lr == lr
    assert recipe.lr * recipe.min_lr_ratio == pytest.approx(min_lr)
    assert (recipe.schedule, recipe.decay_ratio, recipe.warmup_ratio) == (schedule, decay, 0.05)
    assert (recipe.betas, recipe.weight_decay, recipe.grad_clip) == ((0.9, 0.95), 0.1, 1.0)


def test_dense_steps_hold_the_same_tokens_whatever_their_context() -> None:
    """What says that batch sizes are sequences: 4.2M tokens a step for S, M, L and XL alike."""
    assert len({presets.get(f"dense-{size}").recipe.tokens_per_step for size in ("s", "m", "l", "xl")}) == 1
