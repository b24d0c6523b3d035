"""The comparison's folder: whose it is, what it writes, and what it says of broken files."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from retoken.compare.config import CompareConfig
from retoken.compare.folder import CompareFolder, RunKey
from retoken.compare.plan import EVALUATIONS, counts, plan, recipe
from retoken.config import MoRTConfig
from retoken.data.tokens import TokenStore
from retoken.errors import CheckpointError, ConfigError

ABOUT = {"command": "retoken compare demo", "environment": {}, "counts": {}}
RESULT = {
    "val_loss": 5.0, "val_bits_per_byte": 2.0, "tokens": 64, "backbone_params": 10, "table_params": 4,
    "stored_params": 14, "flops_per_token": 60.0, "train_seconds": 2.0, "tokens_per_second": 32.0,
    "peak_memory_bytes": 1000,
}  # fmt: skip
LINES = [
    {
        "kind": "modulators",
        "step": 0,
        "tokens": 0,
        "scale_mean": {"10": 1.0, "2": 0.5},
        "hidden_std": {"0": 1.0},
    },
    {"kind": "train", "step": 1, "tokens": 32, "seconds": 1.0, "loss": 7.0},
    {"kind": "train", "step": 2, "tokens": 64, "seconds": 2.0, "loss": 6.0},
    {"kind": "train", "step": 2, "tokens": 64, "seconds": 2.5, "loss": 6.5},
    {"kind": "eval", "step": 2, "tokens": 64, "seconds": 2.5, "val_loss": 5.0, "val_bits_per_byte": 2.0},
]
KEYS = [RunKey("baseline", 0), RunKey("retoken", 0)]


def finish(folder: CompareFolder, key: RunKey, **result: object) -> Path:
    path = folder.run(key)
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (path / "result.json").write_text(json.dumps(RESULT | result))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> CompareFolder:
    found = CompareFolder(tmp_path / "comparison")
    found.claim({"preset": "demo", "train": {"lr": 1.0}, "modulators": {}, "data": {}}, KEYS, **ABOUT)
    return found


@pytest.fixture
def asked(tiny_store: Path, tmp_path: Path) -> Callable[..., CompareConfig]:
    def build(**options: object) -> CompareConfig:
        base = CompareConfig(preset="demo", out=tmp_path / "out", data=tiny_store)
        return replace(base, **options)

    return build


def test_results_have_the_published_form(folder: CompareFolder) -> None:
    finish(folder, KEYS[0])
    folder.write_results(folder.load())
    found = json.loads(folder.results.read_text())
    assert sorted(found) == ["format_version", "recipe", "runs"]
    assert sorted(found["runs"][0]) == sorted(["name", "seed", *RESULT])
    assert found["runs"][0] == {"name": "baseline", "seed": 0, **RESULT}
    assert found["recipe"]["variants"] == ["baseline", "retoken"]
    assert found["recipe"]["seeds"] == [0]
    assert folder.load().missing == [KEYS[1]]


def test_curves_keep_the_newest_line_of_a_step(folder: CompareFolder) -> None:
    finish(folder, KEYS[0])
    folder.write_results(folder.load())
    rows = list(csv.DictReader(folder.curves.read_text().splitlines()))
    assert [(row["kind"], row["step"], row["loss"]) for row in rows] == [
        ("train", "1", "7.0"), ("train", "2", "6.5"), ("eval", "2", "5.0"),
    ]  # fmt: skip
    assert float(rows[1]["flops"]) == 64 * 60
    assert rows[2]["bits_per_byte"] == "2.0" and rows[0]["bits_per_byte"] == ""


def test_layers_are_numbers_in_order(folder: CompareFolder) -> None:
    finish(folder, KEYS[0])
    assert list(folder.load().runs[0].probes[0].scale_mean.items()) == [(2, 0.5), (10, 1.0)]


def test_seeds_and_variants_can_be_added(folder: CompareFolder) -> None:
    more = [RunKey("baseline", 1), KEYS[0]]
    folder.claim({"preset": "demo", "train": {"lr": 1.0}, "modulators": {}, "data": {}}, more, **ABOUT)
    assert folder.planned() == [*KEYS, RunKey("baseline", 1)]


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ({"preset": "demo", "train": {"lr": 2.0}, "modulators": {}, "data": {}}, "lr 1.0, not 2.0"),
        (
            {"preset": "cpu-s", "train": {"lr": 1.0}, "modulators": {}, "data": {}},
            "preset 'demo', not 'cpu-s'",
        ),
        (
            {"preset": "demo", "train": {"lr": 1.0, "seen": 1}, "modulators": {}, "data": {}},
            "seen None, not 1",
        ),
        (
            {"preset": "demo", "train": {"lr": 1.0}, "modulators": {}, "data": {"fingerprint": "x"}},
            "data.fingerprint",
        ),
    ],
)
def test_another_comparison_is_refused_by_its_first_difference(
    folder: CompareFolder, recipe: dict, named: str
) -> None:
    before = folder.manifest.read_bytes()
    with pytest.raises(ConfigError, match=named):
        folder.claim(recipe, KEYS, **ABOUT)
    assert folder.manifest.read_bytes() == before


def test_a_variant_added_later_may_bring_its_own_modulator(asked: Callable[..., CompareConfig]) -> None:
    first = asked(variants=("baseline", "mort"), mort=MoRTConfig(top_k=2))
    store, folder = TokenStore.open(first.data), CompareFolder(first.out)
    folder.claim(recipe(first, store), list(plan(first)), **ABOUT | {"counts": counts(first, store)})
    second = asked(variants=("retoken",))
    folder.claim(recipe(second, store), list(plan(second)), **ABOUT | {"counts": counts(second, store)})
    found = json.loads(folder.manifest.read_text())
    assert sorted(found["recipe"]["modulators"]) == ["mort", "retoken"]
    assert sorted(found["counts"]) == ["baseline", "mort", "retoken"]
    third = asked(variants=("mort",))
    with pytest.raises(ConfigError, match=r"modulators.mort.top_k 2, not 3"):
        folder.claim(recipe(third, store), list(plan(third)), **ABOUT)


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else"):
        CompareFolder(tmp_path).claim({}, KEYS, **ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("file", "text", "named"),
    [
        ("result.json", "{", "result.json: not readable"),
        ("result.json", "[]", "result.json: holds a list"),
        ("result.json", json.dumps(RESULT | {"val_loss": None}), "result.json: val_loss is None"),
        ("result.json", json.dumps(RESULT | {"tokens": True}), "result.json: tokens is True"),
        ("metrics.jsonl", '{"step": 1}\n{"st', "metrics.jsonl:2: not a metrics line"),
        ("metrics.jsonl", "[1]\n", "metrics.jsonl:1"),
        ("metrics.jsonl", None, "metrics.jsonl: missing"),
        ("../../compare.json", "{}", "compare.json: type None"),
        (
            "../../compare.json",
            '{"type": "comparison", "format_version": 1}',
            "compare.json: recipe is missing",
        ),
    ],
)
def test_broken_files_are_named(folder: CompareFolder, file: str, text: str | None, named: str) -> None:
    path = finish(folder, KEYS[0]) / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(CheckpointError, match=named):
        folder.load()


def test_a_broken_token_loss_is_named(folder: CompareFolder) -> None:
    path = finish(folder, KEYS[0]) / "token_loss.safetensors"
    path.write_bytes(b"not a tensor")
    with pytest.raises(CheckpointError, match=r"token_loss.safetensors: not a token-loss file"):
        folder.load().runs[0].token_loss()


def test_bits_per_byte_may_be_absent_by_intent_only(folder: CompareFolder) -> None:
    path = finish(folder, KEYS[0], val_bits_per_byte=None)
    assert folder.load().runs[0].record.val_bits_per_byte is None
    (path / "result.json").write_text(
        json.dumps({k: v for k, v in RESULT.items() if k != "val_bits_per_byte"})
    )
    with pytest.raises(CheckpointError, match="val_bits_per_byte"):
        folder.load()


def test_the_runs_differ_in_variant_and_seed_alone(asked: Callable[..., CompareConfig]) -> None:
    jobs = plan(asked(seeds=(3, 4), recipe={"steps": 7, "lr": 0.5}))
    assert [key.label for key in jobs] == [
        f"{name}-seed{seed}" for seed in (3, 4) for name in ("baseline", "retoken", "mort")
    ]
    own = ("out", "variant", "modulator", "seed")
    shared = [{k: v for k, v in job.to_dict().items() if k not in own} for job in jobs.values()]
    assert all(other == shared[0] for other in shared)
    assert shared[0]["steps"] == 7 and shared[0]["lr"] == 0.5


def test_a_run_of_another_length_keeps_the_number_of_evaluations(asked: Callable[..., CompareConfig]) -> None:
    job = next(iter(plan(asked(recipe={"tokens": 16 * 128 * 400})).values()))
    assert job.total_steps == 400
    assert job.eval_every == 400 // EVALUATIONS
    assert 0 < job.checkpoint_every < 400


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"variants": ("baseline", "jtok")}, "variants has 'jtok'; accepted: baseline, retoken, mort"),
        ({"variants": ("mort", "mort")}, "variants has mort twice"),
        ({"variants": ()}, "variants is empty"),
        ({"variants": ("baseline", "wide")}, "wide is '' with variants baseline, wide; accepted: a preset"),
        (
            {"variants": ("baseline", "llama")},
            "variants has 'llama'; accepted: baseline, retoken, mort, additive",
        ),
        ({"wide": "llama-80x3"}, "wide is 'llama-80x3' with variants"),
        ({"seeds": (1, 2, 1)}, "seeds has 1 twice"),
        ({"seeds": (-1,)}, "seeds has -1"),
        ({"seeds": ()}, "seeds is empty"),
        ({"jobs": 0}, "jobs is 0"),
        ({"recipe": {"learning_rate": 1}}, "recipe has 'learning_rate'"),
        ({"recipe": {"seed": 1}}, "recipe has 'seed'"),
    ],
)
def test_bad_options_are_named(asked: Callable[..., CompareConfig], options: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        asked(**options)


@pytest.mark.parametrize("name", ["retoken_both", "additive_both"])
def test_both_rows_want_more_than_retokens_size(asked: Callable[..., CompareConfig], name: str) -> None:
    config = asked(variants=("baseline", name), size=3.0)
    found = config.modulator(name)
    assert found is not None and found.table_rows(100) == 300
    with pytest.raises(ConfigError, match=f"size is 1 with {name}; accepted: above 1"):
        asked(variants=("baseline", name)).modulator(name)
