"""What is to be run, and the work of one of its ranks."""

from __future__ import annotations

from dataclasses import dataclass

from retoken.config import ModulatorConfig, MoRTConfig
from retoken.plan import memory as mem
from retoken.plan import work
from retoken.plan.choose import Candidate, emp_ranks, step_traffic
from retoken.plan.clock import Machine
from retoken.plan.frequency import Frequencies
from retoken.plan.shape import Batch, Grid, Tables, require
from retoken.plan.traffic import dense_all_reduce
from retoken.plan.work import Work
from retoken.presets import Backbone


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is to be run, and on what."""

    backbone: Backbone
    """Counted once."""
    modulator: ModulatorConfig | None
    """What is attached; None: nothing."""
    batch: Batch
    """A step over all ranks."""
    machine: Machine
    """What a rank achieves."""
    frequencies: Frequencies
    """Of the ids that tables have rows for."""
    emp: int = 0
    """Ranks that share one copy of the tables; 0: all."""
    layout: str = "auto"
    """"V", "E", "VxE", "auto" for every one of these, or "replicated"; with adamw "auto" is "replicated"."""
    option: str = "auto"
    """"early", "routed", "mixed", or "auto" for every one."""
    optimizer: str = "row_wise"
    """Of the tables: "row_wise", "row_adamw" or "adamw", which moves every row at every step."""
    decays: bool = False
    """Whether rows have weight decay, which row_adamw and row_wise keep 8 bytes a token for."""
    sharding: str = "ddp"
    """Of the backbone: "ddp" or "fsdp"."""
    location: str = "device"
    """Of the tables: "device" or "host"."""
    row_bytes: int = 4
    """Bytes of an element of a row: 4 or 2."""
    memory: float = 0.0
    """Bytes of a rank's device; 0: not known."""
    counting_pass: bool = False
    """Whether MoRT's loads are counted by a forward pass of their own, ahead of the step."""

    activation_checkpointing: bool = False
    """Whether the backward pass computes each layer's forward pass again."""

    def __post_init__(self) -> None:
        mem.check_choices(self.optimizer, self.sharding, self.location)
        require(self.memory >= 0, "memory", self.memory, "a number from 0")
        require(self.row_bytes in (2, 4), "row_bytes", self.row_bytes, "2 or 4")
        emp_ranks(self.emp, self.batch.ranks)
        require(
            self.layout != "replicated" or self.optimizer == "adamw",
            "tables.layout",
            f"'replicated' with tables.optimizer {self.optimizer!r}",
            "adamw there",
        )

    @property
    def replicated(self) -> bool:
        """Whether every rank has all tables, and all-reduces their dense gradients."""
        dense = self.layout == "replicated" or (self.optimizer == "adamw" and self.layout == "auto")
        return dense and self.batch.ranks > 1

    @property
    def tables(self) -> Tables | None:
        """The tables; None where nothing is attached."""
        if self.modulator is None:
            return None
        b = self.backbone
        depth = {"hidden_size": b.hidden_size, "num_layers": b.num_layers}
        return Tables.of(self.modulator, vocab_size=b.vocab_size, row_bytes=self.row_bytes, **depth)

    @property
    def forwards(self) -> int:
        """Forward passes per micro-batch."""
        return 1 + (self.counting_pass and isinstance(self.modulator, MoRTConfig))


def work_of(job: Job, grid: Grid, option: str) -> Work:
    """The work of the busiest rank in a step; what a measurement of that configuration is compared with."""
    tables = job.tables
    if tables is None:
        return base_work(job, with_tables=False)
    moved = step_traffic(
        tables, grid, option, job.batch, job.frequencies, job.forwards, job.activation_checkpointing
    )
    return work_with_tables(job, tables, Candidate(grid=grid, option=option, traffic=moved))


def naive_work(job: Job) -> Work:
    """Of the ladder's first rung: replicated tables, dense gradients all-reduced, dense AdamW."""
    tables, ranks = job.tables, job.batch.ranks
    if tables is None:
        return base_work(job, with_tables=False)
    dense = dense_all_reduce(tables, ranks)
    slow = work.with_dense_tables(base_work(job, with_tables=True), dense, ranks)
    local = work.table_bytes(
        tables, Grid(), job.batch, job.frequencies, optimizer="adamw", option="early", ranks=1
    )
    return work.add(slow, memory_bytes=local)


def base_work(job: Job, *, with_tables: bool) -> Work:
    """The backbone's; with the scales, routers and counting passes that come with tables, or without."""
    counts = job.backbone.count(job.modulator if with_tables else None)
    return work.backbone_work(
        job.batch,
        job.backbone.count(None).backbone_flops_per_token,
        counts.backbone_params + counts.other_params,
        job.backbone.num_layers,
        job.sharding,
        forwards=job.forwards if with_tables else 1,
        recomputed=job.activation_checkpointing,
    )


def work_with_tables(job: Job, tables: Tables, candidate: Candidate) -> Work:
    """`base_work`, the exchange of a candidate and what tables cost a rank."""
    grid, option = candidate.grid, candidate.option
    exchanged = work.with_exchange(
        base_work(job, with_tables=True), candidate.traffic, job.backbone.num_layers, option
    )
    local = work.table_bytes(
        tables,
        grid,
        job.batch,
        job.frequencies,
        optimizer=job.optimizer,
        option=option,
        ranks=job.batch.ranks,
    )
    host = work.host_bytes(tables, job.batch, job.frequencies) if job.location == "host" else 0.0
    return work.add(exchanged, memory_bytes=local, host_bytes=host)
