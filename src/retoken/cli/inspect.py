"""`retoken inspect`: what a checkpoint's tables learned, as a page."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from retoken.cli.export_view import bars
from retoken.cli.options import as_json
from retoken.errors import ConfigError

if TYPE_CHECKING:
    from retoken.eval import Loaded
    from retoken.inspect import Inspection, Subject
    from retoken.train.world import World


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """What a checkpoint's tables learned: scales, rows, choices, neighbours, and which rows matter.

    With a token store, half of the held-out windows estimate what rows are worth and the other half measures
    the loss without layers, bands of tokens and the rows that matter least.
    """

    checkpoint: Annotated[str, tyro.conf.Positional]
    """A run folder, a checkpoint in it, or a folder written by save_pretrained, with tables attached."""
    data: Path | None = None
    """Token store written by `retoken prepare`; without it the run's own, where it is there."""
    out: Path | None = None
    """Page to write; an existing one is replaced."""
    figure: Path | None = None
    """SVG file to draw the losses of pruned rows into; needs a store."""
    tokens: tuple[str, ...] = ()
    """Texts of single tokens to name the neighbours of, as ' the'; without them the most frequent ones."""
    eval_tokens: int = 32768
    """Held-out tokens of both halves together, spread over the split; 0: all."""
    check: int = 40
    """Tokens whose rows are really zeroed, one at a time, to check the estimates."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; "auto": a GPU where there is one."""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves PyTorch's choice."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Look, print, and write the page; returns the exit code."""
        self._check()
        from retoken.eval import open_checkpoint
        from retoken.eval.loading import store_of
        from retoken.inspect import Look, inspect
        from retoken.inspect.subject import own_modulators
        from retoken.train.world import open_world

        with open_world(self.device, self.threads) as world, bars() as bar:
            loaded = open_checkpoint(self.checkpoint)
            own_modulators(loaded)
            own = store_of(loaded.run)
            store = self.data or (own and own.folder)
            if self.figure is not None and store is None:
                raise ConfigError(
                    f"--figure is {self.figure} and no token store is there; accepted: --data STORE"
                )
            subject = self._subject(loaded, store, world)
            found = inspect(loaded, subject, store, Look(checked=self.check, tokens=self.tokens, bars=bar))
        self._write(found)
        self._show(found)
        return 0

    def _subject(self, loaded: Loaded, store: Path | None, world: World) -> Subject | None:
        from retoken.inspect import Subject

        if store is None:
            return None
        return Subject.of_store(loaded, store, world, max_tokens=self.eval_tokens)

    def _write(self, found: Inspection) -> None:
        from retoken.report.inspect_panels import pruning_curves
        from retoken.report.inspection import write_page
        from retoken.report.standalone import save

        if self.out is not None:
            write_page(self.out, found, self._run_folder(), self._command())
        if self.figure is not None and found.measured is not None:
            save(pruning_curves(found.measured), self.figure)

    def _run_folder(self) -> Path | None:
        """The finished run that was named, whose probes show the course of training."""
        from retoken.compare.runs import is_finished

        path = Path(self.checkpoint)
        return path if is_finished(path) else None

    def _command(self) -> str:
        """The command of this page, without what it has by default."""
        words = ["retoken", "inspect", self.checkpoint]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in ("checkpoint", "json") and value != field.default:
                values = value if isinstance(value, tuple) else (value,)
                words += [f"--{field.name.replace('_', '-')}", *map(str, values)]
        return shlex.join(words)

    def _show(self, found: Inspection) -> None:
        if self.json:
            print(as_json(found.to_dict()))
            return
        from retoken.cli.inspect_view import lines_of

        print("\n".join(lines_of(found)))
        if self.out is not None:
            print(f"page: {self.out}")

    def _check(self) -> None:
        for name in ("eval_tokens", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: 0 or more")
        if self.check < 2:
            raise ConfigError(f"--check is {self.check}; accepted: 2 or more, to rank them")
        for name in ("out", "figure"):
            path: Path | None = getattr(self, name)
            if path is not None and path.is_dir():
                raise ConfigError(f"--{name} {path} is a folder; accepted: a file to write to")
