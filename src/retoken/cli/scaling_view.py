"""How `retoken scaling` looks on a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from retoken.cli.tables import plain_table, print_table
from retoken.scaling.predict import Estimate, Prediction

WIDTH = 100
_TITLES = {
    "compute": "C, FLOPs",
    "compute_params": "N_c",
    "tokens": "tokens D",
    "table_params": "table parameters N_n",
    "loss": "loss, nats a token",
    "base_loss": "baseline's loss",
    "reduction": "loss reduction",
    "compute_ratio": "baseline's C over C",
    "factor": "1 + gamma eta",
}


def show_fit(found: Mapping[str, Any]) -> None:
    """A fit's summary, as `summary` has it."""
    console = Console(width=max(WIDTH, Console().width), highlight=False)
    runs = found["runs"]
    console.print(
        f"{runs['count']} runs of {runs['backbone']}: {len(runs['budgets'])} budgets, {runs['sizes']} sizes, "
        f"{runs['seeds']} seeds; {found['law']}"
    )
    if runs["left_out"]:
        console.print(f"left out, neither baseline nor with tables: {', '.join(runs['left_out'])}")
    print_table(console, _constant_table(found))
    if found["gains"]:
        print_table(console, _gain_table(found))
        for name, gain in found["gains"].items():
            _show_doublings(console, name, gain["eta_laws"])
    console.print(f"\n{_scatter(found)}")
    console.print(_flops(found["flops"]))
    _show_isocompute(console, found["isocompute"])
    if found["held_out"]:
        print_table(console, _held_out_table(found["held_out"]))
    _warn(console, found["warnings"])


def show_prediction(found: Prediction, fit_warnings: Sequence[str], level: float) -> None:
    """One prediction."""
    console = Console(width=max(WIDTH, Console().width), highlight=False)
    asked = found.setting
    words = f", eta {asked.eta:g}, rho {asked.rho:g}" if asked.eta else ""
    table = plain_table("", "value", f"{level:.0%} interval", title=f"{asked.variant}{words}")
    for name, title in _TITLES.items():
        each: Estimate = getattr(found, name)
        low_high = (each.interval.low, each.interval.high) if each.interval else None
        value = f"{each.value:.2%}" if name == "reduction" else _number(each.value)
        table.add_row(title, value, "" if each.given else _span(low_high, name == "reduction"))
    one_run = (found.one_run.low, found.one_run.high) if found.one_run else None
    table.add_row("loss of one run", "", _span(one_run))
    print_table(console, table)
    _warn(console, [*found.warnings, *(f"of the fit: {each}" for each in fit_warnings)])


def show_published(found: Mapping[str, Any]) -> None:
    """The published numbers worked through."""
    console = Console(width=max(WIDTH, Console().width), highlight=False)
    columns = (
        "table",
        "eta",
        "rho",
        "gamma",
        "reduction %",
        "predicted",
        "ratio",
        "predicted",
        "exponents allowed",
    )
    table = plain_table(*columns, title="Tables 6 and 7, by one exponent and a power of eta")
    for cell in found["tables"]:
        ours, (low, high) = cell["predicted"]["power"], cell["exponent_range"]
        table.add_row(
            *(cell["source"], f"{cell['eta']:g}", f"{cell['rho']:g}", f"{cell['gamma']:.4f}"),
            *(f"{cell['loss_reduction']:.2f}", f"{ours['loss_reduction']:.3f}"),
            *(f"{cell['compute_ratio']:.2f}", f"{ours['compute_ratio']:.4f}", f"{low:.4f} to {high:.4f}"),
        )
    print_table(console, table)
    print_table(console, _form_table(found))
    least = found["least_worst_half_units"]
    console.print(f"no gamma with one exponent misses by less than {least:.2f} half units of the last digit")
    print_table(console, _size_table(found["sizes"]))
    print_table(console, _line_table(found["jtok"]))
    claim, need = found["jtok"]["claimed"], found["jtok"]["gap_for_claim"]
    console.print(
        f"stated: {claim['loss_reduction']} % lower loss, {claim['compute_saved']} % less compute, "
        f"which needs a gap of {need:.4f}"
    )


def _warn(console: Console, warnings: Sequence[str]) -> None:
    if warnings:
        console.print("\n[bold]what this cannot tell[/bold]")
    for each in warnings:
        console.print(f"- {each}")


def _constant_table(found: Mapping[str, Any]) -> Table:
    table = plain_table("", "value", f"{found['level']:.0%} interval", "profile", title="constants")
    for name, each in found["constants"].items():
        ends = found["profiles"].get(name)
        table.add_row(name, _number(each["value"]), _span(each["interval"]), _profile(ends) if ends else "")
    for name, each in (("L* ~ C^-x: x", "loss_exponent"), ("N_c* ~ C^y: y", "size_exponent")):
        here = found["frontier"][each]
        table.add_row(name, _number(here["value"]), _span(here["interval"]), "")
    return table


def _profile(ends: Mapping[str, float | None]) -> str:
    low, high = (_number(ends[end]) if ends[end] is not None else "open" for end in ("low", "high"))
    return f"{low} to {high}"


def _gain_table(found: Mapping[str, Any]) -> Table:
    spans = f"{found['level']:.0%} interval"
    forms = "; ".join(f"{name} {_form(each)}" for name, each in found["gains"].items())
    table = plain_table(
        "variant", "eta", "rho", "gamma", spans, "1 + gamma eta", spans, title=f"gamma: {forms}"
    )
    for name, gain in found["gains"].items():
        for each in gain["settings"]:
            gamma, factor = each["gamma"], each["factor"]
            table.add_row(
                *(name, f"{each['eta']:.3g}", f"{each['rho']:.3g}"),
                *(f"{gamma['value']:.5f}", _span(gamma["interval"])),
                *(f"{factor['value']:.3f}", _span(factor["interval"])),
            )
    return table


def _show_doublings(console: Console, name: str, laws: Sequence[Mapping[str, Any]]) -> None:
    """JTok's law of eta, at each N_c and D that has several."""
    if laws:
        slopes = [each["per_doubling"] for each in laws]
        ends = f"{min(slopes):+.4f} to {max(slopes):+.4f}" if len(slopes) > 1 else "one size"
        mean = sum(slopes) / len(slopes)
        console.print(
            f"{name}, a doubling of eta at one N_c and D: {mean:+.4f} nats ({ends}; {len(slopes)} sizes)"
        )


def _form(gain: Mapping[str, Any]) -> str:
    """Its name, with what bends it."""
    bend = {
        "constant": "",
        "power": f", q {gain['shape']:.3g}",
        "saturating": f", s {math.exp(gain['shape']):.3g}",
        "log": f", s {math.exp(gain['shape']):.3g}",
    }
    return f"{gain['form']}{bend[gain['form']]}" + (f", r {gain['rho_s']:.3g}" if gain["rho_s"] else "")


def _scatter(found: Mapping[str, Any]) -> str:
    seeds, draws = found["seed_spread"], found["draws"]
    words = f"runs lie {found['noise']:.2%} off the law"
    words += f", seeds scatter by {seeds:.2%}" if seeds is not None else ", one seed"
    return f"{words}; {draws['settled']} of {draws['asked']} bootstrap fits came to rest"


def _flops(found: Mapping[str, Any]) -> str:
    low, high = found["counted_over_6nd"]
    used = "6 N_c a token"
    if found["counted"]:
        law = f"{found['scale']:.4g} N_c^{found['power']:.3f} a token"
        used = f"{law}, within {found['spread']:.1%} of the counts"
    extra = "".join(f"; {name} takes {x:+.2%}" for name, x in found["overhead"].items() if x is not None)
    return f"FLOPs: {used}; counted over 6 N_c D: {low:.3f} to {high:.3f}{extra}"


def _show_isocompute(console: Console, found: Mapping[str, Any] | str) -> None:
    if isinstance(found, str):
        console.print(f"\nisocompute parabola: none, {found}")
        return
    title = (
        f"isocompute parabola: N_c* ~ C^{found['size_exponent']:.3f}, L* ~ C^-{found['loss_exponent']:.4f}"
        f"{'; ' + found['note'] if found['note'] else ''}"
    )
    table = plain_table("C", "sizes", "N_c*", "joint fit", "L*", "joint fit", "", title=title)
    for each in found["nadirs"]:
        table.add_row(
            *(f"{each['budget']:.3g}", str(each["sizes"])),
            *(_number(each["params"]), _number(each["joint_params"])),
            *(
                _number(each["loss"]),
                _number(each["joint_loss"]),
                "" if each["inside"] else "outside the sizes run",
            ),
        )
    print_table(console, table)


def _held_out_table(scores: Sequence[Mapping[str, Any]]) -> Table:
    table = plain_table(
        "held out", "law", "gamma", "runs", "error", "mean", "", left=3, title="error on runs held out"
    )
    for each in scores:
        error, lean = each["error"], each["lean"]
        numbers = ("-", "-") if error is None else (f"{error:.2%}", f"{lean:+.2%}")
        table.add_row(each["held_out"], each["law"], each["form"], str(each["runs"]), *numbers, each["why"])
    return table


def _form_table(found: Mapping[str, Any]) -> Table:
    columns = ("gamma", "exponent", "worst miss, half units", "ratio at eta 30, 50, 80 when left out")
    table = plain_table(
        *columns, title="forms of gamma: Tables 6 and 7, and Table 6's ratios left out in turn"
    )
    for form, each in found["forms"].items():
        errors = ", ".join(f"{error:+.3f}" for error in each["left_out_ratio_errors"].values())
        table.add_row(form, f"{each['exponent']:.4f}", f"{each['worst_half_units']:.2f}", errors)
    return table


def _size_table(sizes: Sequence[Mapping[str, Any]]) -> Table:
    table = plain_table(
        "backbone", "gain", "relative", "so the baseline's loss", title="Appendix H, (50, 0.5), 100B tokens"
    )
    for each in sizes:
        numbers = (f"{each['gain']:.3f}", f"{each['relative']:g} %", f"{each['base_loss']:.3f}")
        table.add_row(each["backbone"], *numbers)
    return table


def _line_table(jtok: Mapping[str, Any]) -> Table:
    ends = ", ".join(f"{line['name']} {line['exponent']:.4f}" for line in jtok["lines"])
    title = f"JTok's two lines (exponents: {ends})"
    table = plain_table("C", "log2 gap", "lower loss", "less compute", title=title)
    for each in jtok["implied"]:
        table.add_row(
            f"{each['compute']:.3g}", f"{each['gap']:.4f}",
            f"{each['loss_reduction']:.2f} %", f"{each['compute_saved']:.1f} %",
        )  # fmt: skip
    return table


def _span(pair: Sequence[float] | None, percent: bool = False) -> str:
    if pair is None:
        return "undefined"
    return " to ".join(f"{end:.2%}" if percent else _number(end) for end in pair)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
