"""How `retoken plan` looks on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from retoken.cli.presets import size
from retoken.cli.tables import plain_table, print_table
from retoken.plan import Machine, Outlook, Plan
from retoken.plan.choose import megabytes
from retoken.plan.fit import Fit
from retoken.plan.measured import Uniques

WIDTH = 100
_UNITS = {
    "flops": (1e12, "TFLOP/s"),
    "memory_bandwidth": (1e9, "GB/s"),
    "link_bandwidth": (1e9, "GB/s"),
    "latency": (1e-6, "us"),
    "host_bandwidth": (1e9, "GB/s"),
    "overlap": (1.0, ""),
    "fixed": (1e-3, "ms"),
}


def show(title: str, plan: Plan, uniques: Sequence[Uniques]) -> None:
    """The whole plan."""
    console = Console(width=max(WIDTH, Console().width), highlight=False)
    console.print(f"{title}: prediction, nothing was run")
    console.print(_parameters(plan))
    if not plan.outlooks:
        print_table(console, _memory_table(plan, None))
        console.print(f"\na step takes {_seconds(plan.base_time.total)}")
        return
    for table in (
        _unique_table(plan, uniques),
        _outlook_table(plan),
        _phase_table(plan.fewest_bytes),
        _memory_table(plan, plan.fewest_bytes),
    ):
        print_table(console, table)
    console.print(f"\n{_conclusion(plan)}")


def show_fit(fit: Fit) -> None:
    """Fitted rates and the errors of predictions made with them."""
    console = Console(width=max(WIDTH, Console().width), highlight=False)
    table = plain_table("rate", "value", "", title="fitted rates")
    for name in Machine.constants():
        unit, word = _UNITS[name]
        value = f"{getattr(fit.machine, name) / unit:.4g} {word}"
        table.add_row(name, value, "fitted" if name in fit.fitted else "given")
    print_table(console, table)
    errors = plain_table("step", "error", "", title="predicted over measured, less 1")
    for kind, found in (("", fit.errors), ("held out", fit.held_out)):
        for name, error in found.items():
            errors.add_row(name, f"{error:+.1%}", kind)
    print_table(console, errors)


def _parameters(plan: Plan) -> str:
    found = plan.parameters
    words = [f"backbone {size(found['backbone_params'])}, N_c {size(found['compute_params'])}"]
    words.append(f"tables {size(found['table_params'])}, eta {found['eta']:.3g}, rho {found['rho']:.3g}")
    return "parameters: " + "; ".join(words)


def _unique_table(plan: Plan, uniques: Sequence[Uniques]) -> Table:
    """Expected distinct ids of the batches that matter; with a store what its batches hold."""
    job = plan.job
    title = f"distinct ids of a batch ({job.frequencies.origin})"
    table = plain_table("batch", "tokens", "independent", "measured", "ratio", "used", title=title)
    group = job.batch.tokens * plan.group
    tokens = {"micro_batch": job.batch.tokens, "emp_group": group, "step": job.batch.step_tokens}
    real = {each.tokens: each for each in uniques}
    for name, count in tokens.items():
        found = real.get(count)
        independent = plan.unique[name] / job.frequencies.ratio(count)
        seen = (f"{found.measured:,.0f}", f"{found.ratio:.3f}") if found else ("", "")
        table.add_row(
            name.replace("_", "-"), f"{count:,}", f"{independent:,.0f}", *seen, f"{plan.unique[name]:,.0f}"
        )
    return table


def _outlook_table(plan: Plan) -> Table:
    columns = (
        "layout",
        "exchange",
        "sent",
        "received",
        "messages",
        "memory",
        "step",
        "over backbone",
        "fits",
    )
    table = plain_table(*columns, title="a step of the busiest rank, by layout and exchange", left=2)
    for each in (*plan.outlooks, *plan.ladder):
        fits = {True: "yes", False: "no", None: "?"}[each.fits]
        layout = "replicated" if each.name == "naive" else str(each.grid)
        table.add_row(
            layout,
            each.name,
            megabytes(each.sent),
            megabytes(each.received),
            f"{each.messages:,}",
            megabytes(each.memory.device_total),
            _seconds(each.time.total),
            f"{each.overhead:+.1%}",
            fits,
        )
    return table


def _phase_table(best: Outlook) -> Table:
    title = f"bytes by phase: layout {best.grid}, exchange {best.name}"
    table = plain_table("phase", "sent", "received", "to itself", title=title)
    for name, moved in best.bytes.items():
        table.add_row(name, *(megabytes(moved[key]) for key in ("sent", "received", "local")))
    return table


def _memory_table(plan: Plan, best: Outlook | None) -> Table:
    memory = best.memory if best else plan.base_memory
    table = plain_table("kind", "device", "host", title="memory of the fullest rank, without activations")
    for name, count in memory.device.items():
        table.add_row(name, megabytes(count), "")
    for name, count in memory.host.items():
        table.add_row(name, "", megabytes(count))
    table.add_row("together", megabytes(memory.device_total), megabytes(memory.host_total))
    if plan.job.memory:
        left = memory.left(plan.job.memory)
        table.add_row("left", megabytes(left) if left >= 0 else f"-{megabytes(-left)}", "")
    return table


def _conclusion(plan: Plan) -> str:
    few, fast = plan.fewest_bytes, plan.fastest
    lines = [
        f"the backbone alone: {_seconds(plan.base_time.total)} a step",
        f"fewest bytes: {_named(few)}",
        f"fastest that fits: {_named(fast)}" if fast.fits is not False else "none fits",
    ]
    kept = f"{plan.bytes_per_parameter:.3g} bytes a table parameter, against 16 of dense float32 AdamW"
    return "\n".join([*lines, kept])


def _named(each: Outlook) -> str:
    where = "replicated" if each.name == "naive" else f"layout {each.grid}, exchange {each.name}"
    return f"{where}: {megabytes(max(each.sent, each.received))}, {each.overhead:+.1%}"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"
