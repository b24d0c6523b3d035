"""JTok's ladder of embedding parallel: naive, sharded, deduplicated, early, mixed; over no tables."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from typing import Any

from retoken import presets
from retoken.bench.alone import busiest
from retoken.bench.crew import Crew
from retoken.bench.ladder import BASE, EXCHANGES, NAIVE, rungs_of
from retoken.bench.turns import Turns, take
from retoken.data.tokens import TokenStore
from retoken.errors import ConfigError
from retoken.plan import Batch, Frequencies, Grid, Job, Machine, Work, naive_work, work_of
from retoken.plan.choose import step_traffic
from retoken.plan.fit import Measurement
from retoken.plan.measured import of_store, with_clustering
from retoken.plan.traffic import dense_all_reduce
from retoken.train.config import TrainConfig
from retoken.train.timing import Spread

JTOK = {NAIVE: 0.57, "sharded": 0.83, "deduplicated": 0.93}
"""Of the throughput without tables, as JTok reports it of a 3.2B-A0.5B on a cluster it does not describe."""
_NOWHERE = Machine(flops=1, memory_bandwidth=1, link_bandwidth=1, latency=0, host_bandwidth=1)
"""Work does not depend on the machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rung:
    """Training with tables held and fetched in one way."""

    name: str
    """As in `retoken.bench.ladder`."""
    of_base: Spread
    """Throughput over that without tables, in the same repeat, by the wall clock."""
    cpu_of_base: Spread
    """The same in CPU seconds, which other processes disturb less."""
    tokens_per_second: Spread
    """Of all ranks."""
    sent: float | None
    """Bytes for tables the busiest rank sent in one step; None: not counted (none, or DDP's all-reduce)."""
    planned: float | None
    """What the plan says of the same ids and choices; of "naive" what it says of dense gradients."""
    expected: float | None
    """What the plan expects of such a step from the corpus' frequencies."""
    exact: bool
    """Whether each phase of each rank was as planned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Climbed:
    """One ladder."""

    preset: str
    """The backbone."""
    variant: str
    """What is attached."""
    ranks: int
    """gloo processes."""
    tokens_per_step: int
    """Of all ranks."""
    table_params: int
    """Numbers in the tables."""
    backbone_params: int
    """Numbers in the backbone."""
    rungs: list[Rung]
    """From the plain backbone on."""
    works: dict[str, Work]
    """What a rank does in a step of each rung, as the plan's time model sees it."""
    turns: Turns
    """Every turn."""

    @property
    def name(self) -> str:
        """For tables and files."""
        return f"{self.preset} {self.variant}, {self.ranks} ranks, {self.tokens_per_step} tokens"

    def measurements(self, *, held_out: bool) -> list[Measurement]:
        """For fitting the plan's time model: the median step of each rung."""
        return [
            Measurement(
                name=f"{self.name}: {rung.name}",
                held_out=held_out,
                seconds=Spread.of(self.turns.seconds(rung.name)).median,
                work=self.works[rung.name],
            )
            for rung in self.rungs
        ]


def measure(
    config: TrainConfig,
    *,
    ranks: int = 4,
    naive: bool = True,
    steps: int = 3,
    repeats: int = 8,
) -> Climbed:
    """Time training steps of every rung, one after the other and back again.

    Args:
        config: The run with tables; its batch is over all ranks.
        ranks: gloo processes.
        naive: whether to time replicated tables, which take 16 bytes a parameter on each rank.
        steps: Of one turn.
        repeats: Turns, at least 2.

    Raises:
        ConfigError: It does not fit the ranks, or a rank could not start.
        TrainingError: A rank failed.
    """
    if ranks < 2 or config.batch_size % ranks:
        raise ConfigError(
            f"ranks is {ranks} with a batch of {config.batch_size}; accepted: from 2, and a divisor of it"
        )
    store = TokenStore.open(config.data)
    rungs = rungs_of(config.variant, naive)
    options = {"part": "ladder", "config": config.to_dict(), "rungs": rungs, "threads": config.threads or 1}
    command = [sys.executable, "-m", "retoken.bench.rank"]
    with Crew(command, ranks, options, threads=config.threads or 1) as crew:
        if crew.failed:
            raise ConfigError(f"the ladder cannot run: {crew.failed}")
        turns = take({rung: (crew, rung) for rung in rungs}, steps=steps, repeats=repeats)
        audits = {rung: crew.turn(case=rung, steps=0) for rung in rungs}
    job = _job(config, store, ranks)
    counts = job.backbone.count(job.modulator)
    return Climbed(
        preset=config.preset,
        variant=config.variant,
        ranks=ranks,
        tokens_per_step=config.tokens_per_step,
        table_params=counts.table_params,
        backbone_params=counts.backbone_params,
        rungs=[_rung(name, turns, config, job, audits[name]) for name in rungs],
        works={name: _work(job, name, config.threads or 1) for name in rungs},
        turns=turns,
    )


def _job(config: TrainConfig, store: TokenStore, ranks: int) -> Job:
    """The run as the plan knows it, with what real batches repeat."""
    vocab, share = store.manifest.vocab_size, config.batch_size // ranks
    frequencies: Frequencies = of_store(store, vocab)
    frequencies, _ = with_clustering(frequencies, store, (1, share, config.batch_size), config.context_length)
    return Job(
        backbone=presets.Backbone.of(
            presets.get(config.preset), vocab_size=vocab, context_length=config.context_length
        ),
        modulator=config.attached,
        batch=Batch(sequences=config.batch_size, context_length=config.context_length, ranks=ranks),
        machine=_NOWHERE,
        frequencies=frequencies,
    )


def _work(job: Job, rung: str, threads: int) -> Work:
    """Of the busiest rank; ranks that share a core wait for each other."""
    ranks = job.batch.ranks
    if rung == BASE:
        done = work_of(dataclasses.replace(job, modulator=None), Grid(), "early")
    elif rung == NAIVE:
        done = naive_work(job)
    else:
        done = work_of(job, Grid(vocab_shards=ranks), EXCHANGES[rung])
    return dataclasses.replace(done, crowding=max(1.0, ranks * threads / (os.cpu_count() or 1)))


def _rung(name: str, turns: Turns, config: TrainConfig, job: Job, audits: list[dict[str, Any]]) -> Rung:
    sent = [audit["sent"] for audit in audits if "sent" in audit]
    planned = [audit["planned"] for audit in audits if "planned" in audit]
    return Rung(
        name=name,
        of_base=turns.speed(name, BASE),
        cpu_of_base=turns.speed(name, BASE, cpu=True),
        tokens_per_second=Spread.of([config.tokens_per_step / seconds for seconds in turns.seconds(name)]),
        sent=busiest(sent),
        planned=_dense(job) if name == NAIVE else busiest(planned),
        expected=_expected(job, name),
        exact=sent == planned,
    )


def _dense(job: Job) -> float:
    assert job.tables is not None
    return dense_all_reduce(job.tables, job.batch.ranks)


def _expected(job: Job, rung: str) -> float | None:
    """Bytes the busiest rank sends."""
    if rung not in EXCHANGES:
        return None
    assert job.tables is not None
    grid = Grid(vocab_shards=job.batch.ranks)
    moved = step_traffic(job.tables, grid, EXCHANGES[rung], job.batch, job.frequencies)
    return float(moved.flow().sent.max())
