"""A page's panel as an SVG file of its own, in a light or dark page's colours as the reader has it."""

from __future__ import annotations

import re
from pathlib import Path

from markupsafe import escape

from retoken.checkpoint.files import atomic_file
from retoken.errors import DataError
from retoken.report.palette import css_variables
from retoken.report.svg import Panel


def standalone(panel: Panel) -> str:
    """The panel with its colours declared, its size, and its title inside."""
    text = str(panel.svg)
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    assert box is not None
    used = set(re.findall(r"var\((--[\w-]+)\)", body)) | {"--page"}
    light, dark = (_declared(used, dark=each) for each in (False, True))
    night = f"@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"
    style = f":root{{{light}}} {night} text{{font-family:sans-serif}}"
    size = f' width="{float(box[1]):g}" height="{float(box[2]):g}"'
    page = '<rect width="100%" height="100%" style="fill:var(--page)"/>'
    return f"{head}{size}><title>{escape(panel.title)}</title><style>{style}</style>{page}{body}\n"


def _declared(used: set[str], *, dark: bool) -> str:
    every = css_variables(dark=dark).split("; ")
    return "; ".join(each.rstrip(";") for each in every if each.split(":")[0] in used)


def save(panel: Panel, path: Path) -> None:
    """Write it.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as partial:
            partial.write_text(standalone(panel), encoding="utf-8")
    except OSError as error:
        raise DataError(f"figure {path} cannot be written: {error.strerror}") from None
