"""The tables of docs/plan.md: `python docs/tables/plan.py` works them out and writes them there.

They are predictions for the paper's models on a cluster nobody ran them on; the cluster's numbers are below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from retoken import presets
from retoken.config import ModulatorConfig, MoRTConfig, ReTokenConfig
from retoken.plan import Batch, Frequencies, Job, Machine, Outlook, Plan, plan
from retoken.plan.choose import megabytes
from retoken.presets import Backbone

PAGE = Path(__file__).parent.parent / "plan.md"
MACHINE = Machine(
    flops=200e12, memory_bandwidth=2e12, link_bandwidth=50e9, latency=10e-6, host_bandwidth=50e9, overlap=1.0
)
MEMORY = 80e9
RANKS = (8, 64, 512, 4096)
MICRO_TOKENS = 16384
"""Tokens of a forward pass of one rank, at most; one sequence where that is longer."""
ZIPF = (1.06, 0.88)
DIVIDED = ("17b-a2b",)
"""Backbones that FSDP divides, for they do not fit whole; the others are copied to every rank."""
VARIANTS: dict[str, ModulatorConfig] = {"ReToken": ReTokenConfig(), "MoRT (5, 3)": MoRTConfig()}
Row = tuple[str, ...]


def job_of(name: str, modulator: ModulatorConfig, ranks: int, **options: object) -> Job:
    """A preset's recipe on so many ranks, with one sequence a rank where it has fewer."""
    preset = presets.get(name)
    context = preset.recipe.context_length
    sequences = max(preset.recipe.batch_size, ranks)
    backbone = Backbone.of(preset)
    job = Job(
        backbone=backbone,
        modulator=modulator,
        batch=Batch(
            sequences=sequences,
            context_length=context,
            ranks=ranks,
            micro_sequences=min(sequences // ranks, max(1, MICRO_TOKENS // context)),
        ),
        machine=MACHINE,
        frequencies=Frequencies.zipf(backbone.vocab_size, *ZIPF),
        sharding="fsdp" if name in DIVIDED else "ddp",
        memory=MEMORY,
    )
    return replace(job, **options)  # pyright: ignore[reportArgumentType]


def fastest(job: Job) -> tuple[int, Plan]:
    """The emp group, 8 ranks, 64, ..., with the shortest predicted step that fits; and its plan."""
    sizes = [size for size in RANKS if size <= job.batch.ranks]
    plans = {size: plan(replace(job, emp=size)) for size in sizes}
    return min(plans.items(), key=lambda item: (item[1].fastest.fits is False, item[1].fastest.time.total))


def step_rows(variant: str) -> Iterator[Row]:
    """A row for every backbone and number of ranks."""
    modulator = VARIANTS[variant]
    for name in (preset.name for preset in presets.presets() if preset.group == "paper"):
        for ranks in RANKS:
            yield step_row(job_of(name, modulator, ranks))


def step_row(job: Job) -> Row:
    """What is best on these ranks, and the ladder's first rung."""
    emp, found = fastest(job)
    best, few = found.fastest, plan(job).fewest_bytes
    counted = replace(
        job,
        emp=emp,
        layout=best.grid.layout,
        option=best.name,
        counting_pass=isinstance(job.modulator, MoRTConfig),
    )
    slower = next(each.overhead for each in plan(counted).outlooks if each.grid == best.grid)
    ahead = counted.counting_pass and job.batch.micro_batches > 1
    naive = found.ladder[0]
    return (
        f"{job.batch.ranks:,}",
        f"{job.batch.micro_batches} x {job.batch.tokens:,}",
        f"{found.unique['micro_batch']:,.0f}",
        seconds(found.base_time.total),
        f"{emp:,}",
        str(best.grid),
        best.name,
        megabytes(max(best.sent, best.received)),
        memory(best),
        f"{best.overhead:+.1%}",
        f"{slower:+.1%}" if ahead else "",
        f"{few.grid.layout} {few.name}, {megabytes(max(few.sent, few.received))}",
        memory(naive),
        f"{naive.overhead:+.1%}",
    )


STEP_HEAD = (
    *(
        "ranks",
        "passes x tokens",
        "distinct ids",
        "backbone's step",
        "emp",
        "layout",
        "exchange",
        "bytes a step",
    ),
    *(
        "memory",
        "over backbone",
        "with counting pass",
        "fewest bytes, emp all",
        "naive: memory",
        "naive: over",
    ),
)


def ladder_rows() -> Iterator[Row]:
    """The rungs for one model on 64 ranks."""
    job = job_of("a250m-t3b", VARIANTS["MoRT (5, 3)"], 64)
    found = plan(replace(job, layout="V"))
    for each in (*found.ladder, *sorted(found.outlooks, key=lambda each: -each.time.total)):
        yield (
            each.name,
            megabytes(max(each.sent, each.received)),
            f"{each.messages:,}",
            memory(each),
            seconds(each.time.waited),
            seconds(each.time.total),
            f"{1 / (1 + each.overhead):.3f}",
        )


LADDER_HEAD = (
    "rung",
    "bytes a step",
    "messages",
    "memory",
    "waited for",
    "step",
    "of the backbone's tokens/s",
)


def law_rows() -> Iterator[Row]:
    """How much hangs on the law of token frequencies."""
    for exponent, shift, ratio in (
        (0.9, 0.0, 1.0),
        (1.0, 0.0, 1.0),
        (*ZIPF, 1.0),
        (*ZIPF, 0.85),
        (1.2, 2.7, 1.0),
    ):
        job = job_of("a250m-t3b", VARIANTS["MoRT (5, 3)"], 64, layout="V", option="early")
        law = Frequencies.zipf(job.backbone.vocab_size, exponent, shift)
        job = replace(job, frequencies=law.clustered(((1, ratio),)))
        found = plan(job)
        best = found.fastest
        yield (
            f"{exponent:g}",
            f"{shift:g}",
            f"{ratio:g}",
            f"{found.unique['micro_batch']:,.0f}",
            f"{found.unique['step']:,.0f}",
            megabytes(max(best.sent, best.received)),
            f"{best.overhead:+.1%}",
        )


LAW_HEAD = (
    "exponent",
    "shift",
    "real / independent",
    "ids, micro-batch",
    "ids, step",
    "bytes a step",
    "over backbone",
)


def memory(each: Outlook) -> str:
    """Of the fullest rank, marked where it does not fit."""
    return megabytes(each.memory.device_total) + ("" if each.fits else " (too much)")


def seconds(value: float) -> str:
    """In three digits."""
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def markdown(head: Row, rows: Iterator[Row]) -> str:
    """A table, numbers to the right."""
    lines = [head, ("---:",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables() -> dict[str, str]:
    """Every table of the page, by its name there."""
    found = {}
    for variant in VARIANTS:
        rows = list(step_rows(variant))
        names = [preset.name for preset in presets.presets() if preset.group == "paper" for _ in RANKS]
        labelled = ((name, *row) for name, row in zip(names, rows, strict=True))
        found[variant] = markdown(("backbone", *STEP_HEAD), labelled)
    found["ladder"] = markdown(LADDER_HEAD, ladder_rows())
    found["law"] = markdown(LAW_HEAD, law_rows())
    return found


def replaced(page: str, name: str, table: str) -> str:
    """The page with another table between the marks of this name."""
    start, end = f"<!-- {name} -->\n\n", f"\n\n<!-- end of {name} -->"
    before, rest = page.split(start)
    _, after = rest.split(end)
    return before + start + table + end + after


def main() -> None:
    """Write them all into the page."""
    page = PAGE.read_text(encoding="utf-8")
    for name, table in tables().items():
        page = replaced(page, name, table)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
