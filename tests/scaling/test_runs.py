"""The table of runs: what is read, what is refused and how it is said."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retoken.errors import DataError
from retoken.scaling.costs import cost_of, of_counted_params, over_convention, overhead
from retoken.scaling.pairs import paired
from retoken.scaling.runs import COLUMNS, Runs, joined, read, write

GOOD = {
    "variant": "mort", "backbone": "dense", "budget": "1e14", "compute_params": "1e6", "table_params": "5e7",
    "stored_params": "5.2e7", "eta": "50", "rho": "0.6", "tokens": "1.6e7", "flops": "1.1e14", "seed": "0",
    "loss": "3.2", "seconds": "10",
}  # fmt: skip


def table(path: Path, **changes: str) -> Path:
    """A file whose third line is changed."""
    rows = [GOOD, GOOD | changes]
    lines = [",".join(GOOD), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_what_is_written_is_read(noisy: Runs, tmp_path: Path) -> None:
    write(tmp_path / "runs.csv", noisy)
    back = read(tmp_path / "runs.csv")
    assert all(
        np.array_equal(getattr(back, name), getattr(noisy, name), equal_nan=name == "seconds")
        for name in COLUMNS
    )
    assert back.variants == ("mort",) and back.budgets.size == 5


def test_more_columns_and_a_missing_time_do_no_harm(tmp_path: Path) -> None:
    path = table(tmp_path / "runs.csv", seconds="")
    lines = path.read_text().splitlines()
    path.write_text("\n".join(f"{line},x" for line in lines) + "\n", encoding="utf-8-sig")
    assert np.isnan(read(path).seconds[1])


@pytest.mark.parametrize(
    ("column", "value", "accepted"),
    [
        ("loss", "nan", "a finite number above 0"),
        ("loss", "-1", "a finite number above 0"),
        ("loss", "0", "a finite number above 0"),
        ("loss", "", "a finite number above 0"),
        ("tokens", "many", "a finite number above 0"),
        ("compute_params", "inf", "a finite number above 0"),
        ("eta", "-3", "a finite number from 0"),
        ("eta", "30", "table_params / compute_params, here 50, to 2%"),
        ("rho", "1.5", "a number from 0 to 1"),
        ("rho", "0", "above 0 where eta is"),
        ("variant", " ", "a name"),
        ("variant", "baseline", "0 of the variant 'baseline'"),
    ],
)
def test_a_cell_that_is_not_accepted_is_named(tmp_path: Path, column: str, value: str, accepted: str) -> None:
    path = table(tmp_path / "runs.csv", **{column: value})
    where = "eta" if value == "baseline" else column
    with pytest.raises(DataError, match=rf"runs\.csv, line 3, column {where}: .*{re.escape(accepted)}"):
        read(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,b\n1,2\n", "no column 'variant'"),
        (",".join(COLUMNS).encode() + b"\n", "no rows"),
        (b"\xff\xfe\x00", "CSV"),
    ],
)
def test_a_file_that_is_something_else(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "runs.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read(tmp_path / "runs.csv")
    with pytest.raises(DataError, match="No such file"):
        read(tmp_path / "none.csv")


def test_a_column_of_counted_flops_comes_before_the_other(tmp_path: Path) -> None:
    path = table(tmp_path / "runs.csv")
    lines = path.read_text().splitlines()
    path.write_text(f"{lines[0]},flops_counted\n{lines[1]},3e14\n{lines[2]},0\n")
    with pytest.raises(DataError, match="line 3, column flops_counted"):
        read(path)
    path.write_text(f"{lines[0]},flops_counted\n{lines[1]},3e14\n{lines[2]},4e14\n")
    assert list(read(path).flops) == [3e14, 4e14]


def test_one_backbone_at_a_time(noisy: Runs) -> None:
    other = noisy.pick(np.arange(3))
    other = Runs(
        **{**{name: getattr(other, name) for name in COLUMNS}, "backbone": np.array(["mixture"] * 3)}
    )
    both = joined([noisy, other])
    assert len(both.one_backbone("mixture")) == 3
    with pytest.raises(DataError, match=r"synthetic, mixture.*accepted: one \(--backbone"):
        both.one_backbone()
    with pytest.raises(DataError, match="'sparse' is not among"):
        both.one_backbone("sparse")


def test_pairs_are_of_one_seed(noisy: Runs) -> None:
    pairs = paired(noisy, "mort")
    assert len(pairs.runs) == 50
    for name in ("compute_params", "tokens", "seed"):
        assert np.array_equal(getattr(pairs.runs, name), getattr(pairs.base, name))
    assert (pairs.base.variant == "baseline").all()
    assert pairs.reduction == pytest.approx(1 - pairs.runs.loss / pairs.base.loss)


def test_counted_flops_and_the_convention(exact: Runs) -> None:
    counted = 40 * exact.compute_params**0.9 * exact.tokens * np.where(exact.variant == "mort", 1.02, 1.0)
    runs = Runs(**{**{name: getattr(exact, name) for name in COLUMNS}, "flops": counted})
    cost = cost_of(runs, "counted")
    assert (cost.scale, cost.power) == pytest.approx((40, 0.9))
    assert cost.spread < 1e-9
    assert overhead(runs, "mort") == pytest.approx(0.02)
    assert over_convention(exact) == pytest.approx(1.0)
    assert cost_of(runs, "6nd").scale == 6


def test_counted_parameters_are_what_the_backbone_alone_takes(exact: Runs) -> None:
    counted = 40 * exact.compute_params**0.9 * exact.tokens * np.where(exact.variant == "mort", 1.02, 1.0)
    runs = of_counted_params(replace(exact, flops=counted))
    assert runs.compute_params == pytest.approx(40 * exact.compute_params**0.9 / 6)
    assert runs.eta == pytest.approx(exact.table_params / runs.compute_params)
    cost = cost_of(runs, "counted")
    assert (cost.scale, cost.power) == pytest.approx((6, 1))
    assert overhead(runs, "mort") == pytest.approx(0.02)


def test_counted_parameters_need_a_plain_run_of_every_size(exact: Runs) -> None:
    with pytest.raises(DataError, match="no run without tables at N_c"):
        of_counted_params(exact.of_variant("mort"))


def test_counted_parameters_of_controls_are_their_own(exact: Runs) -> None:
    larger = exact.of_variant("baseline").pick(np.array([0]))
    larger = replace(larger, variant=np.array(["stored"]), compute_params=larger.compute_params * 7.5)
    found = of_counted_params(joined([exact, larger]))
    assert found.compute_params[-1] == pytest.approx(float(larger.flops[0] / (6 * larger.tokens[0])))
