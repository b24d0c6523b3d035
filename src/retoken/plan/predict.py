"""The plan of a run: sizes, memory, bytes and time of every layout and option, and the best of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from retoken.plan import memory as mem
from retoken.plan import traffic
from retoken.plan.choose import Candidate, Choice, choose, emp_ranks, step_traffic
from retoken.plan.clock import Time, overhead, step_time
from retoken.plan.flow import Flow
from retoken.plan.job import Job, base_work, naive_work, work_with_tables
from retoken.plan.memory import Memory
from retoken.plan.shape import Grid, Tables
from retoken.plan.work import Work
from retoken.presets import Backbone


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """One way of running the job."""

    name: str
    """The option, or the rung of the ladder."""
    grid: Grid
    """Owners of the tables."""
    bytes: dict[str, dict[str, float]]
    """Bytes per step of the busiest rank, by phase: sent, received, local."""
    sent: float
    """Bytes per step over the link of the rank that sends most."""
    received: float
    """Of the rank that receives most."""
    messages: int
    """A rank sends per step."""
    memory: Memory
    """Of the fullest rank."""
    time: Time
    """Of a step."""
    overhead: float
    """Step time over that of the backbone alone, less 1."""
    fits: bool | None
    """Whether the device holds it, activations not counted; None where its size is not known."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "layout": self.grid.layout, "step_seconds": self.time.total}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything `retoken plan` says of a job."""

    job: Job
    """As asked."""
    parameters: dict[str, float]
    """Counted sizes by name."""
    unique: dict[str, float]
    """Expected distinct ids: of a rank's micro-batch, of an emp group's, of a step."""
    base_time: Time
    """Of a step of the backbone alone."""
    base_memory: Memory
    """Of the backbone alone."""
    outlooks: tuple[Outlook, ...] = field(default=())
    """Every layout and option; fewest bytes first. Empty where nothing is attached."""
    ladder: tuple[Outlook, ...] = field(default=())
    """Replicated tables with a dense all-reduce, and tables sharded over V without deduplication."""

    @property
    def group(self) -> int:
        """Ranks that share one copy of the tables."""
        return emp_ranks(self.job.emp, self.job.batch.ranks)

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of row, optimizer state and dense gradient that a table parameter takes; 0 without tables."""
        tables = self.job.tables
        return mem.bytes_per_parameter(tables, self.job.optimizer, decays=self.job.decays) if tables else 0.0

    @property
    def fewest_bytes(self) -> Outlook:
        """The choice that training makes."""
        return self.outlooks[0]

    @property
    def fastest(self) -> Outlook:
        """The shortest predicted step among those that fit, or among all where none does."""
        fitting = [each for each in self.outlooks if each.fits is not False]
        return min(fitting or self.outlooks, key=lambda each: each.time.total)


def plan(job: Job) -> Plan:
    """Work a job out.

    Raises:
        ConfigError: a layout or option that the tables do not have, or in which a rank would own nothing.
    """
    counts, tables = job.backbone.count(job.modulator), job.tables
    base = base_work(job, with_tables=False)
    plain = mem.per_rank(
        backbone_params=job.backbone.params,
        gathered_params=_largest_unit(job.backbone),
        tables=None,
        grid=Grid(),
        batch=job.batch,
        frequencies=job.frequencies,
        sharding=job.sharding,
    )
    head: dict[str, Any] = {
        "job": job,
        "parameters": counts.to_dict(),
        "base_time": step_time(base, job.machine),
        "base_memory": plain,
    }
    if tables is None:
        return Plan(**head, unique={})
    head["unique"] = _unique(job)
    if job.replicated:
        return Plan(**head, outlooks=(_naive(job, tables, base),))
    choice = choose(
        tables,
        job.batch,
        job.frequencies,
        emp=job.emp,
        layout=job.layout,
        option=job.option,
        forwards=job.forwards,
        recomputed=job.activation_checkpointing,
    )
    outlooks = tuple(_outlook(job, tables, each, base) for each in choice.candidates)
    return Plan(**head, outlooks=outlooks, ladder=_ladder(job, tables, choice, base))


def _outlook(job: Job, tables: Tables, candidate: Candidate, base: Work) -> Outlook:
    flow = candidate.traffic.flow()
    return _judged(
        job,
        tables,
        base,
        work_with_tables(job, tables, candidate),
        name=candidate.option,
        grid=candidate.grid,
        optimizer=job.optimizer,
        bytes={name: _largest(candidate.traffic.flow(name)) for name in candidate.traffic.lanes},
        sent=float(flow.sent.max()),
        received=float(flow.received.max()),
        messages=candidate.messages,
    )


def _judged(
    job: Job, tables: Tables, base: Work, done: Work, *, name: str, grid: Grid, optimizer: str, **moved: Any
) -> Outlook:
    others = job.backbone.count(job.modulator).other_params
    memory = mem.per_rank(
        backbone_params=job.backbone.params + others,
        gathered_params=_largest_unit(job.backbone),
        tables=tables,
        grid=grid,
        batch=job.batch,
        frequencies=job.frequencies,
        optimizer=optimizer,
        sharding=job.sharding,
        option=name,
        location=job.location,
        decays=job.decays,
    )
    return Outlook(
        name=name,
        grid=grid,
        memory=memory,
        time=step_time(done, job.machine),
        overhead=overhead(done, base, job.machine),
        fits=memory.left(job.memory) >= 0 if job.memory else None,
        **moved,
    )


def _ladder(job: Job, tables: Tables, choice: Choice, base: Work) -> tuple[Outlook, ...]:
    """The rungs below: naive, and sharded without deduplication; none on one rank."""
    if job.batch.ranks == 1:
        return ()
    grid = next((each.grid for each in choice.candidates if each.grid.layout == "V"), choice.grid)
    moved = step_traffic(
        tables, grid, "sharded", job.batch, job.frequencies, job.forwards, job.activation_checkpointing
    )
    sharded = Candidate(grid=grid, option="sharded", traffic=moved)
    return _naive(job, tables, base), _outlook(job, tables, sharded, base)


def _naive(job: Job, tables: Tables, base: Work) -> Outlook:
    """Replicated tables, dense gradients all-reduced behind the backward pass, dense AdamW."""
    ranks, whole = job.batch.ranks, Grid()
    dense = traffic.dense_all_reduce(tables, ranks)
    return _judged(
        job,
        tables,
        base,
        naive_work(job),
        name="naive",
        grid=whole,
        optimizer="adamw",
        bytes={"dense_all_reduce": {"sent": dense, "received": dense, "local": 0.0}},
        sent=dense,
        received=dense,
        messages=2 * (ranks - 1),
    )


def _largest(flow: Flow) -> dict[str, float]:
    return {
        "sent": float(flow.sent.max()),
        "received": float(flow.received.max()),
        "local": float(flow.local.max()),
    }


def _unique(job: Job) -> dict[str, float]:
    batch, group = job.batch, emp_ranks(job.emp, job.batch.ranks)
    sizes = {"micro_batch": batch.tokens, "emp_group": batch.tokens * group, "step": batch.step_tokens}
    return {name: float(job.frequencies.unique(tokens).sum()) for name, tokens in sizes.items()}


def _largest_unit(backbone: Backbone) -> int:
    """Parameters of the largest unit FSDP gathers: embeddings with head, or a mean layer."""
    return max(
        backbone.embedding_params, (backbone.params - backbone.embedding_params) // backbone.num_layers
    )
