"""`retoken plan`: memory, bytes and time of a run before it runs, for any number of ranks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from retoken import presets
from retoken.cli.options import as_json
from retoken.config import IndexedConfig, ModulatorConfig, MoRTConfig, ReTokenConfig
from retoken.errors import ConfigError
from retoken.plan import Batch, Frequencies, Job, Machine, fit
from retoken.plan.measured import Uniques
from retoken.presets import Backbone, Preset
from retoken.train.tables import TableOptions

GIGA, TERA, MICRO = 1e9, 1e12, 1e-6
ZIPF = (1.06, 0.88)
"""Exponent and shift measured on the default corpus with a vocabulary of 50304; see docs/plan.md."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Say what a run will need: memory, bytes over links, time lost to tables, and the best layout for them.

    Nothing is built, downloaded or measured: counts come from the backbone's configuration, distinct ids of a
    batch from how often token ids occur, seconds from the rates given. Rates fitted to measured steps replace
    the given ones with --fit.
    """

    preset: Annotated[str, tyro.conf.Positional] = ""
    """Backbone by preset name; `retoken presets` lists them. Or give --model."""
    model: str = ""
    """Backbone by its configuration: a folder with config.json."""
    variant: Literal["baseline", "retoken", "mort"] = "retoken"
    """What is attached to the backbone."""
    vocab_size: int | None = None
    """Token ids in place of the preset's own; with --data the store's."""
    json: bool = False
    """Print one JSON object, numbers in full."""

    ranks: int = 1
    """Data-parallel processes, one a device."""
    batch_size: int | None = None
    """Sequences per optimizer step, over all ranks; without it the preset's."""
    micro_batch_size: int = 0
    """Sequences per forward pass of one rank; 0: its whole share."""
    context_length: int | None = None
    """Tokens per sequence; without it the preset's."""
    data_parallel: Literal["ddp", "fsdp"] = "ddp"
    """Whether every rank has the whole backbone or a part of it."""
    table_weight_decay: float = 0.0
    """Decay of the token tables, as in `retoken train`: any but 0 is 8 bytes a token more to keep."""
    tables: TableOptions = field(default_factory=TableOptions)
    """How token tables are trained and divided, as in `retoken train`."""

    memory: float = 80.0
    """GB of memory of a rank's device; 0: not known."""
    flops: float = 200.0
    """TFLOP/s that a rank achieves on the backbone."""
    memory_bandwidth: float = 2000.0
    """GB/s of the memory that tables are used from."""
    link_bandwidth: float = 50.0
    """GB/s of a rank's link, each way."""
    host_bandwidth: float = 50.0
    """GB/s between host memory and the device."""
    latency: float = 10.0
    """Microseconds per message."""
    counting_pass: Literal["auto", "on", "off"] = "auto"
    """Whether MoRT's loads are counted by a forward pass ahead of the step; "auto": as in `retoken train`."""
    overlap: float = 1.0
    """Share of the compute time in which messages travel as well, from 0 to 1."""
    fit: Path | None = None
    """CSV of measured steps: fits the rates above to it and checks them on its held-out lines."""

    data: Path | None = None
    """Token store: its token counts, and the distinct ids of its real batches."""
    counts: Path | None = None
    """Token counts in place of --data: a .npy of integers, by token id."""
    zipf: float | None = None
    """Exponent of a Zipf law in place of both; without any of the three, the law of the default corpus."""
    retoken: ReTokenConfig = field(default_factory=ReTokenConfig)
    """How ReToken is attached."""
    mort: MoRTConfig = field(default_factory=MoRTConfig)
    """How MoRT is attached."""

    def run(self) -> int:
        """Work it out and print it; returns the exit code."""
        from retoken.cli import plan_view

        fitted = fit.fit(fit.read(self.fit), self._given()) if self.fit else None
        if fitted and not (self.preset or self.model):
            print(as_json(_fit_dict(fitted))) if self.json else plan_view.show_fit(fitted)
            return 0
        job, uniques = self.job(fitted.machine if fitted else self._given())
        from retoken.plan import plan

        found = plan(job)
        if self.json:
            print(as_json(_as_dict(found, uniques, fitted)))
            return 0
        if fitted:
            plan_view.show_fit(fitted)
        plan_view.show(self._title(), found, uniques)
        return 0

    def job(self, machine: Machine) -> tuple[Job, list[Uniques]]:
        """What is asked, and what real batches were found to hold.

        Raises:
            ConfigError: options contradict each other, or a value is not accepted.
            DataError: a store or a file of counts is missing or something else.
        """
        if bool(self.preset) == bool(self.model):
            raise ConfigError(
                f"preset is {self.preset!r} and --model is {self.model!r}; accepted: exactly one of the two"
            )
        for name in ("memory", "table_weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; accepted: a number from 0")
        preset = presets.get(self.preset) if self.preset else None
        batch = self._batch(preset)
        backbone = self._backbone(preset, batch.context_length)
        modulator = self._modulator()
        frequencies, uniques = self._frequencies(backbone.vocab_size, batch, modulator)
        job = Job(
            backbone=backbone,
            modulator=modulator,
            batch=batch,
            machine=machine,
            frequencies=frequencies,
            emp=self.tables.ranks,
            layout=self.tables.layout,
            option=self.tables.exchange,
            optimizer=self.tables.optimizer,
            decays=self.table_weight_decay > 0,
            sharding=self.data_parallel,
            location=self.tables.memory,
            row_bytes=self.tables.stored.itemsize,
            memory=self.memory * GIGA,
            counting_pass=self._counts_ahead(modulator, batch),
        )
        return job, uniques

    def _given(self) -> Machine:
        return Machine(
            flops=self.flops * TERA,
            memory_bandwidth=self.memory_bandwidth * GIGA,
            link_bandwidth=self.link_bandwidth * GIGA,
            latency=self.latency * MICRO,
            host_bandwidth=self.host_bandwidth * GIGA,
            overlap=self.overlap,
        )

    def _batch(self, preset: Preset | None) -> Batch:
        sequences = self.batch_size if self.batch_size is not None or not preset else preset.recipe.batch_size
        length = self.context_length
        context = length if length is not None or not preset else preset.recipe.context_length
        if sequences is None or context is None:
            raise ConfigError("--model is given without --batch-size and --context-length; accepted: both")
        return Batch(
            sequences=sequences,
            context_length=context,
            ranks=self.ranks,
            micro_sequences=self.micro_batch_size,
        )

    def _backbone(self, preset: Preset | None, context_length: int) -> Backbone:
        if preset:
            size = self.vocab_size
            if size is None and self.data:
                from retoken.data.tokens import TokenStore

                size = TokenStore.open(self.data).manifest.vocab_size
            return Backbone.of(preset, vocab_size=size, context_length=context_length)
        if self.vocab_size is not None:
            raise ConfigError(f"--vocab-size is {self.vocab_size} with --model; accepted: beside a preset")
        return Backbone.of(_config_in(self.model), context_length=context_length)

    def _modulator(self) -> ModulatorConfig | None:
        options: dict[str, ModulatorConfig] = {"retoken": self.retoken, "mort": self.mort}
        for name, found in options.items():
            if name != self.variant and found != type(found)():
                raise ConfigError(
                    f"--{name}.* is given with --variant {self.variant}; accepted: --variant {name}"
                )
        return options.get(self.variant)

    def _frequencies(
        self, vocab_size: int, batch: Batch, modulator: ModulatorConfig | None
    ) -> tuple[Frequencies, list[Uniques]]:
        given = {"--data": self.data, "--counts": self.counts, "--zipf": self.zipf}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise ConfigError(f"{' and '.join(names)} are given; accepted: one of them")
        if isinstance(modulator, IndexedConfig) and not modulator.by_token and not self.data:
            found = f"--{self.variant}.index is {modulator.index!r} without --data"
            raise ConfigError(f"{found}; accepted: a token store, to count n-grams in")
        if self.counts:
            return Frequencies.load(self.counts, vocab_size), []
        if self.data:
            return _of_store(self.data, vocab_size, batch, modulator)
        law = ZIPF if self.zipf is None else (self.zipf, 0.0)
        return Frequencies.zipf(vocab_size, *law), []

    def _counts_ahead(self, modulator: ModulatorConfig | None, batch: Batch) -> bool:
        return self.counting_pass == "on" or (self.counting_pass == "auto" and counts_ahead(modulator, batch))

    def _title(self) -> str:
        return f"{self.preset or self.model}, {self.variant}, {self.ranks} ranks"


def counts_ahead(modulator: ModulatorConfig | None, batch: Batch) -> bool:
    """Whether training counts the routers' loads by a forward pass of its own: MoRT with micro-batches."""
    balances = isinstance(modulator, MoRTConfig) and modulator.balance_coef > 0
    return balances and batch.micro_batches > 1


def _of_store(
    folder: Path, vocab_size: int, batch: Batch, modulator: ModulatorConfig | None
) -> tuple[Frequencies, list[Uniques]]:
    from retoken.data.tokens import TokenStore
    from retoken.nn import index_for
    from retoken.plan.measured import of_lookups, with_clustering

    store, context = TokenStore.open(folder), batch.context_length
    index = None if modulator is None else index_for(modulator, vocab_size)
    rows = vocab_size if modulator is None else modulator.table_rows(vocab_size)
    found = of_lookups(store, index, rows, context)
    micro = batch.tokens // context
    sizes = (1, micro, micro * batch.ranks, batch.sequences)
    return with_clustering(found, store, sizes, context, index)


def _config_in(folder: str) -> Any:
    from transformers import AutoConfig

    if not (Path(folder) / "config.json").is_file():
        raise ConfigError(f"--model is {folder!r}, which has no config.json; accepted: a model's folder")
    try:
        return AutoConfig.from_pretrained(folder)
    except Exception as error:  # transformers raises many kinds for a broken file
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"--model is {folder!r}, whose config.json is not readable ({said})") from error


def _fit_dict(fitted: fit.Fit) -> dict[str, Any]:
    worst = {"worst": fitted.worst, "worst_held_out": fitted.worst_held_out}
    return asdict(fitted) | worst


def _as_dict(found: Any, uniques: list[Uniques], fitted: fit.Fit | None) -> dict[str, Any]:
    measured = [asdict(each) | {"ratio": each.ratio} for each in uniques]
    base = {"base_time": asdict(found.base_time) | {"total": found.base_time.total}}
    base["base_memory"] = asdict(found.base_memory)
    return {
        "parameters": found.parameters,
        "machine": asdict(found.job.machine),
        "frequencies": found.job.frequencies.origin,
        "unique": found.unique,
        "measured_unique": measured,
        "fit": _fit_dict(fitted) if fitted else None,
        **base,
        "bytes_per_table_parameter": found.bytes_per_parameter,
        "fewest_bytes": found.fewest_bytes.to_dict() if found.outlooks else None,
        "fastest": found.fastest.to_dict() if found.outlooks else None,
        "outlooks": [each.to_dict() for each in found.outlooks],
        "ladder": [each.to_dict() for each in found.ladder],
    }
