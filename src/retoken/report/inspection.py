"""The page of an inspection: one self-contained HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retoken.checkpoint.files import atomic_file, writing
from retoken.compare.runs import Run, read_run
from retoken.compare.verdict import signed, title
from retoken.inspect.inspection import Inspection, Measured
from retoken.report import depth
from retoken.report import inspect_panels as panels
from retoken.report.depth import Load
from retoken.report.page import pour
from retoken.report.svg import Panel


def write_page(path: Path, found: Inspection, run: Path | None, command: str) -> None:
    """Write the page, atomically.

    Args:
        path: the file.
        found: what it shows.
        run: the finished run the checkpoint is of, for the course of training; None: it is of none.
        command: how to repeat it.

    Raises:
        TrainingError: the file cannot be written.
    """
    html = render(found, run, command)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as partial:
            partial.write_text(html, encoding="utf-8")


def render(found: Inspection, run: Path | None, command: str) -> str:
    """The page as HTML; nothing is loaded from elsewhere."""
    course = [] if run is None else _course(read_run(run, name=found.variant, seed=0))
    measured = found.measured
    return pour(
        "inspect.html",
        {
            "found": found,
            "m": measured,
            "name": title(found.variant),
            "headline": headline(found),
            "setting": _setting(found),
            "scales": [panels.scales(found), *course],
            "strengths": panels.strength_grids(found),
            "matter": [] if measured is None else _matter(found, measured),
            "std": None if measured is None else panels.std_lines(measured.hidden_std),
            "std_key": _std_key(measured),
            "load": _load(found),
            "choices": _choices(found),
            "caveats": _caveats(found),
            "command": command,
        },
    )


def headline(found: Inspection) -> str:
    """What matters most, in a line."""
    measured = found.measured
    if measured is None:
        return f"The tables of {title(found.variant)} in {len(found.scales)} layers"
    layer = max(measured.without_layer, key=lambda each: measured.without_layer[each])
    return (
        f"Without its rows the model loses {measured.without_all:.2f} nats per token; without those of layer "
        f"{layer} alone {measured.without_layer[layer]:.2f}"
    )


def _setting(found: Inspection) -> str:
    parts = [found.checkpoint, title(found.variant), f"{found.vocab_size:,} tokens"]
    return " · ".join([*parts, f"{len(found.scales)} of {found.depth} layers", f"width {found.width}"])


def _course(run: Run) -> list[Panel]:
    """Figs. 6-7: scales over training, where the run has logged them."""
    drawn = depth.scale_panels({run.record.name: [run]})
    return [panel for panel in drawn if panel.title.endswith("over training")]


def _matter(found: Inspection, measured: Measured) -> list[Panel]:
    return [
        panels.layer_bars(found, measured),
        panels.band_bars(found, measured),
        panels.pruning_curves(measured),
        panels.check_scatter(measured),
    ]


def _std_key(measured: Measured | None) -> list[tuple[str, int]]:
    names = [] if measured is None else list(measured.hidden_std)
    return list(zip(names, panels.STD_SERIES, strict=False))


def _load(found: Inspection) -> Load | None:
    measured = found.measured
    if measured is None or not measured.loads:
        return None
    shares = tuple(load.shares for load in measured.loads.values())
    return Load(name=found.variant, layers=tuple(measured.loads), shares=shares)


def _choices(found: Inspection) -> list[Panel]:
    """Which tokens choose otherwise than others."""
    measured = found.measured
    if measured is None or not measured.loads:
        return []
    drawn = [panels.effective_grid(found, measured), panels.part_grid(found, measured)]
    return [panel for panel in drawn if panel is not None]


def _caveats(found: Inspection) -> list[str]:
    """What these numbers cannot show."""
    said = [
        "Norm takes a row's length away. A row that was never trained modulates as strongly as any other, in "
        "the direction it was drawn in: strength does not tell that something was learned."
    ]
    measured: Any = found.measured
    if measured is None:
        return [*said, "No token store was given, so no loss was measured."]
    return [
        *said,
        "The model was trained with its rows. A loss without them is what this model loses, not what a model "
        "trained without them would have.",
        f"Losses are of {measured.measured_tokens:,} held-out tokens. A token that does not occur there "
        "costs nothing in them, so how many rows may go depends on the text.",
        f"Estimates are of {measured.looked_tokens:,} other held-out tokens. The order of importance comes "
        "from them and from how often a token occurs in the training split; losses of pruned rows are not of "
        f"the text that chose them. First-order estimates sum to {signed(measured.first_total)} nats per "
        f"token, those along the path to {signed(measured.path_total)}; really zeroing all rows costs "
        f"{signed(measured.without_all)} on the other half.",
    ]
