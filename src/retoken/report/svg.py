"""Matplotlib figures as SVG that lives inside the page: its fonts, its colours, no ids in common."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from retoken.report.palette import stand_in, to_variables

# Pixels of the drawing at natural size; one column of the page's figure grid is about this wide.
WIDTH, HEIGHT = 344, 240


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One picture of the page."""

    title: str
    svg: Markup
    """Inline SVG without size, so that the page scales it."""


def _style() -> dict[Any, Any]:
    ink, muted = stand_in("ink"), stand_in("muted")
    return {
        "svg.fonttype": "none", "font.size": 11.5, "axes.titlesize": 12, "axes.labelsize": 11.5,
        "text.color": ink, "axes.labelcolor": muted, "xtick.color": muted, "ytick.color": muted,
        "xtick.labelsize": 11, "ytick.labelsize": 11, "xtick.major.size": 3, "ytick.major.size": 0,
        "axes.edgecolor": muted, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
        "axes.spines.left": False, "axes.grid": True, "axes.grid.axis": "y", "axes.axisbelow": True,
        "grid.color": stand_in("grid"), "grid.linewidth": 0.8, "lines.linewidth": 1.9,
        "lines.solid_capstyle": "round", "axes.unicode_minus": True,
        "figure.facecolor": "none", "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }  # fmt: skip


def panel(
    name: str,
    title: str,
    description: str,
    draw: Callable[[Axes], None],
    *,
    height: int = HEIGHT,
    width: int = WIDTH,
) -> Panel:
    """Draw one axes into a panel.

    Args:
        name: Unique on the page; prefixes every id in the drawing.
        title: Shown above the picture.
        description: Read out in place of the picture.
        draw: Receives the axes.
        height: Natural height in pixels.
        width: Natural width in pixels.
    """
    with rc_context({**_style(), "svg.hashsalt": name}):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Panel(title=title, svg=Markup(_inlined(buffer.getvalue(), name, description)))


def _inlined(text: str, name: str, description: str) -> str:
    """The drawing without prologue and size, ids made unique, colours as variables, with a description."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r"url\(#", f"url(#{name}-", body)
    body = re.sub(r'xlink:href="#', f'href="#{name}-', body)
    head, rest = body.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    label = str(Markup.escape(description))
    opened = f'<svg xmlns="http://www.w3.org/2000/svg" {box[0]} role="img" aria-label="{label}">'
    return to_variables(opened + rest).replace("\n", " ")
