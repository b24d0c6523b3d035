"""`retoken presets` from the outside."""

from __future__ import annotations

import json

import pytest

from retoken import presets
from retoken.cli.main import main
from retoken.cli.presets import size
from retoken.config import MoRTConfig


def test_the_table_shows_every_preset_and_the_papers_numbers(capsys) -> None:
    assert main(["presets"]) == 0
    out = capsys.readouterr().out
    for name in presets.names():
        assert sum(line.startswith(f"{name} ") for line in out.splitlines()) == 3
    for number in (
        "190.5M",
        "1.07B",
        "463.6M",
        "1.24B",
        "2.32B",
        "6.54B",
        "934.3M",
        "4.67B",
        "10.51B",
        "43.60B",
    ):
        assert number in out, number
    assert max(map(len, out.splitlines())) <= 85


def test_one_preset_in_full(capsys) -> None:
    assert main(["presets", "a250m-t3b"]) == 0
    out = capsys.readouterr().out
    recipe = presets.get("a250m-t3b").recipe
    assert all(name in out for name in recipe.to_dict())
    assert "59604 steps" in out and "10,510,663,680" in out and "beta1 0.9" in out


def test_json_carries_what_is_counted(capsys) -> None:
    assert (
        main(["presets", "demo", "--json", "--num-modulators", "4", "--top-k", "2", "--vocab-size", "100"])
        == 0
    )
    (found,) = json.loads(capsys.readouterr().out)["presets"]
    expected = presets.count(presets.get("demo"), MoRTConfig(num_modulators=4, top_k=2), vocab_size=100)
    assert found["vocab_size"] == 100
    assert found["counts"]["mort"] == expected.to_dict()
    assert found["counts"]["baseline"]["table_params"] == 0
    assert found["recipe"]["batch_size"] == 16


def test_markdown_rows_have_as_many_cells_as_their_head(capsys) -> None:
    assert main(["presets", "--markdown"]) == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    for table in (blocks[0], blocks[2]):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert len(blocks[0].splitlines()) == 2 + len(presets.names())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["dense"], "did you mean dense-"),
        (["demo", "--json", "--markdown"], "--json and --markdown"),
        (["--vocab-size", "100"], "--vocab-size"),
        (["demo", "--vocab-size", "0"], "vocab_size is 0"),
        (["demo", "--top-k", "6"], "top_k is 6"),
        (["demo", "--top-k", "two"], "top-k"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, arguments: list[str], named: str) -> None:
    assert main(["presets", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1 and named in captured.err


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"),
        (1540, "1.54k"),
        (190_533_888, "190.5M"),
        (999_999, "1.00M"),
        (1.5439e9, "1.54B"),
        (2e12, "2.00T"),
    ],
)
def test_sizes_read_well(value: float, text: str) -> None:
    assert size(value) == text
