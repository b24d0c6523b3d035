"""Draws runs.csv: `python studies/defaults/plot.py` writes defaults.svg, prints the tables of README.md."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
COLOURS = {"retoken": "#2a6fb0", "mort": "#c2571a"}
LABELS = {"retoken": "ReToken", "mort": "MoRT"}


def read() -> list[dict[str, Any]]:
    """Rows of runs.csv, numbers as numbers."""
    text = {"stage", "size", "variant", "norm", "table_optimizer"}
    with (HERE / "runs.csv").open(newline="") as file:
        return [{k: v if k in text else float(v) for k, v in row.items()} for row in csv.DictReader(file)]


def start(row: dict[str, Any]) -> str:
    """Norm, initial s, and what else differs from rate 1, std 0.02 and no decay."""
    more = "" if row["table_lr_mult"] == 1 else f", rate × {row['table_lr_mult']:g}"
    more += "" if row["init_std"] == 0.02 else f", std of E {row['init_std']:g}"
    more += "" if row["table_weight_decay"] == 0 else f", decay {row['table_weight_decay']:g}"
    return f"{row['norm']}, s = {row['init_scale']:g}{more}"


def baseline_loss(rows: list[dict[str, Any]], size: str, seed: float) -> float | None:
    """The baseline at the study's rate, same seed and data order: every difference is against this one."""
    for row in rows:
        if (
            row["variant"] == "baseline"
            and row["stage"] in ("confirm", "longer")
            and (row["size"], row["seed"]) == (size, seed)
        ):
            return row["val_loss"]
    return None


def confirm_table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: candidate, size, loss over seeds, difference to the baseline by seed."""
    groups = defaultdict(list)
    for row in rows:
        if row["stage"] == "confirm":
            groups[row["size"], row["variant"], start(row) if row["norm"] else "-"].append(row)
    lines = [
        "| size | variant | start | held-out loss, seeds | mean | against the baseline |",
        "|---|---|---|---|---|---|",
    ]
    for (size, variant, label), some in sorted(groups.items()):
        losses = [row["val_loss"] for row in sorted(some, key=lambda row: row["seed"])]
        gaps = [
            row["val_loss"] - base
            for row in some
            if (base := baseline_loss(rows, size, row["seed"])) is not None
        ]
        gap = f"{statistics.mean(gaps):+.3f} ({min(gaps):+.3f} … {max(gaps):+.3f})" if gaps else "-"
        seeds = ", ".join(f"{loss:.3f}" for loss in losses)
        lines.append(f"| {size} | {variant} | {label} | {seeds} | {statistics.mean(losses):.3f} | {gap} |")
    return lines


def rows_table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: row-sparse optimizers against dense AdamW from the same start at rate 5, seed by seed."""
    dense = {
        (r["size"], r["variant"], r["seed"]): r["val_loss"]
        for r in rows
        if r["stage"] in ("confirm", "longer")
        and not r["table_optimizer"]
        and start(r) == "rms, s = 1, rate × 5"
    }
    groups = defaultdict(list)
    for row in rows:
        if row["stage"] in ("rows", "longer") and row["variant"] != "baseline":
            key = row["size"], row["variant"], row["table_optimizer"] or "adamw", row["table_lr_mult"]
            groups[key].append(row)
    lines = [
        "| size | variant | trained by | rate | held-out loss, seeds | against dense | against baseline |",
        "|---|---|---|---|---|---|---|",
    ]
    for (size, variant, optimizer, rate), some in sorted(groups.items()):
        some.sort(key=lambda row: row["seed"])
        pairs = [(r["val_loss"], dense[size, variant, r["seed"]]) for r in some]
        bases = [(r["val_loss"], baseline_loss(rows, size, r["seed"]) or float("nan")) for r in some]
        cells = ", ".join(f"{loss:.3f}" for loss, _ in pairs), _gaps(pairs), _gaps(bases)
        lines.append(f"| {size} | {variant} | {optimizer} | {rate:g} | {' | '.join(cells)} |")
    return lines


def _gaps(pairs: list[tuple[float, float]]) -> str:
    return ", ".join(f"{loss - other:+.3f}" for loss, other in pairs)


def screen_table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: every run of the screen, best first."""
    lines = [
        "| variant | norm | s | std of E | table rate | table decay | held-out loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(
        (r for r in rows if r["stage"] == "screen"), key=lambda r: (r["variant"], r["val_loss"])
    ):
        cells = (f"{row[k]:g}" for k in ("init_scale", "init_std", "table_lr_mult", "table_weight_decay"))
        lines.append(f"| {row['variant']} | {row['norm']} | {' | '.join(cells)} | {row['val_loss']:.3f} |")
    return lines


def draw_start(axes: Any, rows: list[dict[str, Any]], variant: str) -> None:
    """Loss over initial s, a line for each norm."""
    for norm, style in (("rms", "-o"), ("l2", "--s")):
        some = [r for r in rows if (r["variant"], r["norm"]) == (variant, norm) and _only_start_varies(r)]
        some.sort(key=lambda r: r["init_scale"])
        alpha = 1.0 if norm == "rms" else 0.55
        look = {"color": COLOURS[variant], "label": f"{LABELS[variant]}, {norm}", "alpha": alpha}
        axes.plot([str(r["init_scale"]) for r in some], [r["val_loss"] for r in some], style, **look)


def _only_start_varies(row: dict[str, Any]) -> bool:
    plain = (row["init_std"], row["table_lr_mult"], row["table_weight_decay"]) == (0.02, 1.0, 0.0)
    return row["stage"] == "screen" and plain


def draw_rate(axes: Any, rows: list[dict[str, Any]], variant: str) -> None:
    """Loss over the table rate, a line for each initial spread of E."""
    for std, style in ((0.02, "-o"), (1.0, "--s")):
        some = [
            r for r in rows
            if r["stage"] == "screen" and (r["variant"], r["norm"], r["init_scale"]) == (variant, "rms", 1.0)
            and (r["init_std"], r["table_weight_decay"]) == (std, 0.0)
        ]  # fmt: skip
        some.sort(key=lambda r: r["table_lr_mult"])
        if not some:
            continue
        alpha = 1.0 if std == 0.02 else 0.55
        look = {"color": COLOURS[variant], "label": f"{LABELS[variant]}, std of E {std:g}", "alpha": alpha}
        axes.plot([f"{r['table_lr_mult']:g}" for r in some], [r["val_loss"] for r in some], style, **look)


def draw_confirm(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Difference to the baseline of the same seed: a dot for each run, a bar for the mean."""
    labels: list[str] = []
    for size in ("xs", "s"):
        for variant in COLOURS:
            for label in dict.fromkeys(
                start(r) for r in rows if r["stage"] == "confirm" and r["variant"] == variant
            ):
                some = [
                    r
                    for r in rows
                    if r["stage"] == "confirm" and (r["size"], r["variant"]) == (size, variant)
                ]
                pairs = [
                    (r["val_loss"], baseline_loss(rows, size, r["seed"])) for r in some if start(r) == label
                ]
                gaps = [loss - base for loss, base in pairs if base is not None]
                if gaps:
                    axes.barh(len(labels), statistics.mean(gaps), color=COLOURS[variant], alpha=0.35)
                    axes.plot(gaps, [len(labels)] * len(gaps), "o", color=COLOURS[variant], markersize=4)
                    labels.append(f"{size}  {LABELS[variant]}  {label}")
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.invert_yaxis()


def main() -> None:
    """The figure and the tables."""
    rows = read()
    figure, (left, middle, right) = plt.subplots(
        1, 3, layout="constrained", figsize=(14, 4.6), gridspec_kw={"width_ratios": [1, 1, 1.3]}
    )
    for variant in COLOURS:
        draw_start(left, rows, variant)
        draw_rate(middle, rows, variant)
    draw_confirm(right, rows)
    left.set(title="start of the scale", xlabel="initial s", ylabel="held-out loss, nats per token")
    middle.set(title="table learning rate (rms, s = 1)", xlabel="times the backbone's")
    right.set(title="two sizes, two seeds", xlabel="held-out loss minus the baseline's")
    for axes in (left, middle):
        axes.legend(fontsize=7)
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "defaults.svg", metadata={"Date": None})
    print("\n".join([*confirm_table(rows), "", *screen_table(rows), "", *rows_table(rows)]))


if __name__ == "__main__":
    main()
