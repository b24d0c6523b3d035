"""The parts of the page: curves over seeds, tokens by gain, numbers in words, colours that can be read."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from retoken.compare.folder import CompareFolder
from retoken.compare.runs import Curve, Run, RunRecord
from retoken.report import palette, words
from retoken.report.curves import label_x, order
from retoken.report.depth import Load
from retoken.report.page import gather
from retoken.report.series import Band, band, reached, running_mean, thinned
from retoken.report.svg import panel
from retoken.report.tokens import token_reports


def curve(steps: list[int], losses: list[float], *, pace: float = 1.0) -> Curve:
    step = np.array(steps, dtype=np.float64)
    loss = np.array(losses)
    return Curve(
        step=step, tokens=step * 10, seconds=step * pace, flops=step * 1e3, loss=loss, bits_per_byte=loss
    )


def test_seeds_are_joined_at_the_steps_they_share() -> None:
    found = band([curve([1, 2, 3], [5, 4, 3]), curve([2, 3, 4], [6, 5, 1], pace=3)], "seconds")
    assert found is not None
    assert found.x.tolist() == [4, 6]
    assert found.mean.tolist() == [5, 4]
    assert found.low.tolist() == [4, 3] and found.high.tolist() == [6, 5]
    assert band([curve([1], [5]), curve([2], [5])], "tokens") is None


def test_running_mean_keeps_constants_to_the_ends() -> None:
    assert running_mean(np.full(9, 3.0), 4) == pytest.approx(np.full(9, 3.0))
    assert running_mean(np.array([0.0, 3.0, 6.0]), 3) == pytest.approx([1.5, 3.0, 4.5])


def test_thinning_keeps_both_ends() -> None:
    x = np.arange(1000.0)
    found = thinned(Band(x=x, mean=x, low=x, high=x), 50)
    assert found.x.size == 50 and found.x[0] == 0 and found.x[-1] == 999


def test_where_a_curve_reaches_a_level() -> None:
    x = np.array([0.0, 10.0, 20.0])
    falling = Band(x=x, mean=np.array([6.0, 4.0, 3.0]), low=x, high=x)
    assert reached(falling, 5.0) == pytest.approx(5.0)
    assert reached(falling, 3.0) == pytest.approx(20.0)
    assert reached(falling, 7.0) == 0.0
    assert reached(falling, 2.0) is None


def tokens_run(folder: Path, name: str, nll: np.ndarray, count: np.ndarray, seed: int = 0) -> Run:
    folder.mkdir(parents=True)
    save_file({"nll": nll, "count": count}, folder / "token_loss.safetensors")
    record = RunRecord(
        **{
            "name": name,
            "seed": seed,
            "val_loss": 1.0,
            "val_bits_per_byte": 1.0,
            "tokens": 1,
            "table_params": 0,
        },
        **dict.fromkeys(("backbone_params", "stored_params", "peak_memory_bytes"), 1),
        **dict.fromkeys(("flops_per_token", "train_seconds", "tokens_per_second"), 1.0),
    )
    empty = curve([], [])
    return Run(
        folder=folder, record=record, start_memory_bytes=0, val_tokens=0, train=empty, evals=empty, probes=()
    )


def test_the_token_that_gained_is_found_and_rare_ones_are_not(tmp_path: Path) -> None:
    count = np.full(500, 50.0)
    count[7] = 3  # too rare to list, however large its gain
    plain, better = 4.0 * count, 4.0 * count
    better[7] -= 3 * 3.9
    better[21] -= 50 * 1.5
    better[33] += 50 * 0.5
    groups = {
        "baseline": [tokens_run(tmp_path / "a", "baseline", plain, count)],
        "retoken": [tokens_run(tmp_path / "b", "retoken", better, count)],
    }
    (report,) = token_reports(groups, str)
    assert report.gained[0].text == "21" and report.gained[0].change == pytest.approx(-1.5)
    assert report.gained[0].steady
    assert [entry.text for entry in report.lost] == ["33"]
    assert "7" not in [entry.text for entry in report.gained]
    assert report.threshold >= 10


def test_bands_share_out_the_whole_difference(tmp_path: Path) -> None:
    count = np.arange(2000, 0, -1).astype(float)
    groups = {
        "baseline": [tokens_run(tmp_path / "a", "baseline", 5 * count, count)],
        "mort": [tokens_run(tmp_path / "b", "mort", 4.5 * count, count)],
    }
    (report,) = token_reports(groups, str)
    assert [band.types for band in report.bands] == [10, 90, 900, 1000]
    assert sum(band.share_of_change for band in report.bands) == pytest.approx(1)
    assert sum(band.share_of_tokens for band in report.bands) == pytest.approx(1)
    assert all(band.change == pytest.approx(-0.5) for band in report.bands)


def test_a_sign_that_differs_between_seeds_is_marked(tmp_path: Path) -> None:
    count = np.full(50, 20.0)
    pairs = [(0, 5.0), (1, -1.0)]
    groups = {
        "baseline": [tokens_run(tmp_path / f"a{s}", "baseline", 5 * count, count, s) for s, _ in pairs],
        "retoken": [tokens_run(tmp_path / f"b{s}", "retoken", 5 * count - d, count, s) for s, d in pairs],
    }
    (report,) = token_reports(groups, str)
    assert report.gained[0].change == pytest.approx(-2.0 / 20) and not report.gained[0].steady


def test_runs_on_other_text_are_not_laid_over_each_other(tmp_path: Path) -> None:
    groups = {
        "baseline": [tokens_run(tmp_path / "a", "baseline", np.ones(9), np.ones(9))],
        "retoken": [tokens_run(tmp_path / "b", "retoken", np.ones(9), np.full(9, 2.0))],
    }
    assert token_reports(groups, str) == []


def test_load_extremes() -> None:
    load = Load(name="mort", layers=(3, 5), shares=((0.5, 0.3, 0.2), (0.1, 0.2, 0.7)))
    assert load.even == pytest.approx(1 / 3)
    assert load.lowest == (0.1, 5, 0) and load.highest == (0.7, 5, 2)


def test_known_variants_keep_their_colour() -> None:
    assert order(["mort"])["mort"] == order(["baseline", "retoken", "mort"])["mort"] == 2
    assert order(["baseline", "other"])["other"] == 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999"), (999.6, "1.00 K"), (12_345, "12.3 K"), (123_456, "123 K"), (6.5e9, "6.50 B")],
)
def test_quantities(value: float, text: str) -> None:
    assert words.quantity(value).replace(words.THIN, " ") == text


def test_durations_and_memory() -> None:
    plain = [words.seconds(s).replace(words.THIN, " ") for s in (12.34, 120, 7200)]
    assert plain == ["12.3 s", "2.00 min", "2.00 h"]
    assert words.memory(3 * 2**30).replace(words.THIN, " ") == "3.00 GiB"


def test_activated_parameters_hold_the_rows_a_token_uses(invented_once: CompareFolder) -> None:
    counted = {"activated_params": 1000, "other_params": 24, "table_params": 6 * 5 * 600 * 8, "rho": 0.6}
    comparison = replace(invented_once.load(), counts={"mort": counted})
    rows = {row["name"]: row["activated"] for row in gather(comparison)["cost_rows"]}
    assert rows["mort"] == pytest.approx(1000 + 24 + 6 * 3 * 8)
    assert rows["baseline"] is None


def test_samples_lose_their_empty_lines() -> None:
    assert words.compact("one\n\n \ntwo three\n") == "one\ntwo three\n"


@pytest.mark.parametrize(
    ("kind", "highest", "label"),
    [
        ("tokens", 2e6, "tokens seen"),
        ("flops", 3.2e14, "training FLOPs, × 10¹⁴"),
        ("seconds", 100, "training time, seconds"),
        ("seconds", 1000, "training time, minutes"),
        ("seconds", 20000, "training time, hours"),
    ],
)
def test_axes_are_labelled_in_units_of_their_size(kind: str, highest: float, label: str) -> None:
    seen = {}

    def draw(axes) -> None:  # type: ignore[no-untyped-def]
        axes.plot([0, highest], [0, 1])
        label_x(axes, kind, highest)
        seen["label"] = axes.get_xlabel()

    panel("probe", "title", "description", draw)
    assert seen["label"] == label


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def _contrast(first: str, second: str) -> float:
    high, low = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_text_and_lines_can_be_read_in_both_themes(dark: bool) -> None:
    theme = palette.theme(dark=dark)
    for ground in ("page", "raised"):
        for role in ("ink", "muted", "link", "good", "bad"):
            assert _contrast(theme[role], theme[ground]) >= 4.5, (role, ground)  # WCAG AA, text
        for number in range(palette.SERIES):
            assert _contrast(theme[f"series-{number}"], theme[ground]) >= 3  # WCAG AA, graphics


@pytest.mark.parametrize("dark", [False, True])
def test_more_is_further_from_the_page(dark: bool) -> None:
    theme = palette.theme(dark=dark)
    away = [_contrast(theme[f"sequential-{level}"], theme["page"]) for level in range(palette.LEVELS)]
    assert all(b > a for a, b in pairwise(away))
