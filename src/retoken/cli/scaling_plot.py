"""`retoken scaling plot`: the paper's scaling figures from a table of runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from retoken.cli.options import as_json
from retoken.cli.scaling_options import FitOptions, check_level


@dataclass(frozen=True, kw_only=True)
class ScalingPlot(FitOptions):
    """Draw a table of runs with the law fitted to it, each figure an SVG file.

    Isocompute curves (Fig. 3), frontiers with and without tables (Fig. 4), gains against eta, rho and size
    (Fig. 8), residuals. A figure that the runs have nothing for is left out.
    """

    out: Path
    """Folder for the figures; made if it is not there."""
    level: float = 0.95
    """Of the bands."""
    json: bool = False
    """Print one JSON object with the files."""

    def run(self) -> int:
        """Fit, draw and list the files; returns the exit code."""
        from retoken.report import scaling_frontier, scaling_gain
        from retoken.report.standalone import save

        check_level(self.level)
        fitted, model = self.fitted()
        panels = {
            "isocompute": scaling_frontier.isocompute_panel(fitted, model),
            "frontier": scaling_frontier.frontier_panel(fitted, model, self.level),
            "eta": scaling_gain.eta_panel(fitted, model),
            "rho": scaling_gain.rho_panel(fitted, model),
            "size": scaling_gain.size_panel(fitted, model),
            "residuals": scaling_frontier.residual_panel(fitted),
        }
        drawn = {name: panel for name, panel in panels.items() if panel is not None}
        files = {name: self.out / f"{name}.svg" for name in drawn}
        for name, panel in drawn.items():
            save(panel, files[name])
        left_out = [name for name in panels if name not in drawn]
        if self.json:
            print(as_json({"files": {name: str(path) for name, path in files.items()}, "left_out": left_out}))
        else:
            for path in files.values():
                print(path)
            if left_out:
                print(f"left out, the runs do not vary it: {', '.join(left_out)}")
        return 0
