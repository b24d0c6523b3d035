"""`retoken export`: a checkpoint as a model folder, plain or with folded and packed rows."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from retoken.cli.export_view import Bars, bars, lines_of
from retoken.cli.options import as_json
from retoken.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from retoken.checkpoint.export import Exported
    from retoken.cli.export_prune import Pruned
    from retoken.eval.rowtypes import RowCost
    from retoken.serving.artifact import Artifact

ACCEPTED = "a run folder with a checkpoint, or a checkpoint in one (RUN/checkpoints/step-N)"
DEFAULT_ROWS = "int8"
DEFAULT_SHARD = "50GB"
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True, kw_only=True)
class Export:
    """A checkpoint as a model folder for `from_pretrained`; with --fold or --rows, for serving.

    Plain, a training checkpoint, written by any number of processes, becomes what `save_pretrained` would
    write. With --fold, --rows or a loss to measure, rows go into a packed file that is served from any tier.
    Tensors go from file to file in blocks: the model need not fit into memory.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A run folder, for its newest checkpoint, or a checkpoint in it; with --fold or --rows also what
    save_pretrained wrote."""
    out: Path
    """Folder to make; it must not be there yet."""
    max_shard_size: str = DEFAULT_SHARD
    """Larger models are divided into files of at most this size, with an index: "5GB", "500MB"."""
    fold: bool = False
    """Work scale and norm into the rows (Eq. 8)."""
    rows: Literal["", "float32", "bfloat16", "int8", "float8_e4m3"] = ""
    """Row type of the packed file; empty: as they are with --fold or --prune, int8 where only the loss is
    asked for."""
    prune: float | None = None
    """Share of the tokens whose rows are left out, those worth least first: 0.5 leaves out half. Such tokens
    are not modulated any more. Needs a store."""
    prune_loss: float | None = None
    """Leave out as many tokens' rows as cost at most so many nats per held-out token, in place of --prune."""
    data: Path | None = None
    """Token store to measure the loss of each row type on; else the run's own, where it is there."""
    loss: Literal["auto", "on", "off"] = "auto"
    """Whether to measure it; "auto": of packed rows, where there is a store."""
    eval_tokens: int = 65536
    """Held-out tokens to measure it on; 0: all. With --prune half of them say which rows are worth least, and
    the loss is measured on the others."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure it; "auto": a GPU where there is one."""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves PyTorch's choice."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Export and print; returns the exit code."""
        size = self._size()
        self._check()
        if self.out.exists() or self.out.is_symlink():
            raise ConfigError(f"--out {self.out} exists; accepted: a folder to be made")
        if self._packs:
            self._pack()
            return 0
        with bars() as bar:
            done, with_tokenizer = _export_plain(find(self.checkpoint), self.out, size, bar)
        self._show(done, with_tokenizer)
        return 0

    @property
    def _packs(self) -> bool:
        """Whether rows go into a file of their own."""
        return self.fold or self.rows != "" or self.data is not None or self.loss == "on" or self._prunes

    @property
    def _prunes(self) -> bool:
        """Whether rows are left out."""
        return self.prune is not None or self.prune_loss is not None

    def _pack(self) -> None:
        from retoken.eval.loading import tokenizer_for
        from retoken.serving.artifact import write_artifact

        source = find_source(self.checkpoint)
        _refuse_bare(source)
        tokenizer = tokenizer_for(source)
        store = self._store(source, tokenizer)
        rows = self.rows or (None if self.fold or self._prunes else DEFAULT_ROWS)

        def beside(folder: Path) -> None:
            if tokenizer is not None and not any(folder.glob("tokenizer*")):
                tokenizer.save_pretrained(folder)

        def write(folder: Path, bar: Bars, kept: Tensor | None = None) -> Artifact:
            options: dict[str, Any] = {"fold": self.fold, "rows": rows, "kept": kept, "beside": beside}
            return write_artifact(folder, self.out, **options, on_progress=bar("rows"))

        with bars() as bar, _as_folder(source, self.out, bar) as folder:
            if self._prunes and store is not None:
                made, pruned = self._pruned(source, store, lambda kept: write(folder, bar, kept), bar)
                costs = []
            else:
                made, pruned = write(folder, bar), None
                costs = self._costs(source, folder, store, made, tokenizer, bar) if store else []
        self._show_packed(source, made, costs, pruned, tokenizer is not None)

    def _pruned(
        self, source: Path, store: Path, write: Callable[[Tensor], Artifact], bar: Bars
    ) -> tuple[Artifact, Pruned]:
        from retoken.cli.export_prune import write_pruned
        from retoken.train.world import open_world

        options = {"share": self.prune, "allowed": self.prune_loss}
        with open_world(self.device, self.threads) as world:
            return write_pruned(source, store, write, world, self.eval_tokens, bar, **options)

    def _store(self, source: Path, tokenizer: Any) -> Path | None:
        """The store to measure on; what is wrong with it is told before anything is written."""
        from retoken.data.tokenizer import check_same
        from retoken.data.tokens import TokenStore
        from retoken.eval.loading import run_of, store_of

        if self.loss == "off":
            return None
        store = TokenStore.open(self.data) if self.data is not None else store_of(run_of(source))
        if store is None and (self.loss == "on" or self._prunes):
            given = "rows are to be pruned" if self._prunes else "--loss is on"
            raise ConfigError(f"{given} and {source} has no run with its store; accepted: --data STORE")
        if store is not None and tokenizer is not None:
            check_same(str(source), tokenizer, str(store.folder), store.tokenizer())
        return None if store is None else store.folder

    def _costs(
        self, source: Path, folder: Path, store: Path, made: Artifact, tokenizer: Any, bar: Bars
    ) -> list[RowCost]:
        from retoken.eval.loading import run_of
        from retoken.eval.rowtypes import RowTypes
        from retoken.train.world import open_world

        subject = RowTypes(
            name=str(source),
            source=folder,
            artifact=self.out,
            fold=self.fold,
            tokenizer=tokenizer,
            run=run_of(source),
        )
        with open_world(self.device, self.threads) as world:
            return subject.measure(store, world, made.rows, self.eval_tokens, bar("held-out loss"))

    def _show_packed(
        self,
        source: Path,
        made: Artifact,
        costs: list[RowCost],
        pruned: Pruned | None,
        with_tokenizer: bool,
    ) -> None:
        if self.json:
            losses = {"losses": [cost.to_dict() for cost in costs]}
            left_out = {"pruned": None if pruned is None else pruned.to_dict()}
            found = {"checkpoint": str(source), **made.to_dict(), "tokenizer": with_tokenizer}
            print(as_json({**found, **losses, **left_out}))
            return
        print("\n".join(lines_of(made, costs, pruned, with_tokenizer)))

    def _show(self, done: Exported, with_tokenizer: bool) -> None:
        if self.json:
            print(as_json({**done.to_dict(), "tokenizer": with_tokenizer}))
            return
        written_by = f"{done.world_size} process{'es' if done.world_size > 1 else ''}"
        files = f"{len(done.files)} file{'s' if len(done.files) > 1 else ''}"
        print(f"{done.out}: {done.checkpoint}, written by {written_by}")
        print(f"  {done.tensors:,} tensors, {done.bytes / 1e6:,.1f} MB, in {files}")
        if not with_tokenizer:
            print("  without a tokenizer: neither the run's folder nor its data has one")

    def _size(self) -> int:
        """Bytes."""
        found = re.fullmatch(r"(\d+)(KB|MB|GB|TB)", self.max_shard_size)
        size = int(found.group(1)) * _UNITS[found.group(2)] if found else 0
        if size == 0:
            raise ConfigError(f"--max-shard-size is {self.max_shard_size!r}; accepted: as 5GB or 500MB")
        return size

    def _check(self) -> None:
        for name in ("eval_tokens", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: 0 or more")
        self._check_prune()
        if self.loss == "off" and self.data is not None:
            raise ConfigError(f"--data is {self.data} and --loss is off; accepted: one of them")
        if self._packs and self.max_shard_size != DEFAULT_SHARD:
            raise ConfigError(
                f"--max-shard-size is {self.max_shard_size}; accepted without --fold, --rows, --prune and "
                "--data: packed rows are one file"
            )

    def _check_prune(self) -> None:
        if self.prune is not None and self.prune_loss is not None:
            raise ConfigError(
                f"--prune is {self.prune} and --prune-loss is {self.prune_loss}; accepted: one of them"
            )
        if self.prune is not None and not 0 < self.prune < 1:
            raise ConfigError(f"--prune is {self.prune}; accepted: a share above 0 and below 1")
        if self.prune_loss is not None and not 0 <= self.prune_loss < math.inf:
            raise ConfigError(f"--prune-loss is {self.prune_loss}; accepted: nats per token, 0 or more")
        if self._prunes and self.loss == "off":
            raise ConfigError(
                "--loss is off and rows are to be pruned; accepted: auto or on, as losses say which"
            )


def find(path: Path) -> Path:
    """The checkpoint folder that `path` stands for.

    Raises:
        CheckpointError: There is none.
    """
    from retoken.checkpoint import is_checkpoint, newest_path
    from retoken.train.folder import RunFolder

    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path} is no folder; accepted: {ACCEPTED}")
    newest = path if is_checkpoint(path) else newest_path(RunFolder(path).checkpoints)
    if newest is None:
        raise CheckpointError(f"checkpoint {path} holds no training checkpoint; accepted: {ACCEPTED}")
    return newest


def find_source(path: Path) -> Path:
    """The training checkpoint or the model folder that `path` stands for; a run's newest checkpoint is first.

    Raises:
        CheckpointError: There is none.
    """
    from retoken.checkpoint import newest_path
    from retoken.checkpoint.files import read_json
    from retoken.train.folder import RunFolder

    run = RunFolder(path)
    if path.is_dir() and newest_path(run.checkpoints) is None:
        for folder in (path, run.model):
            if (folder / "config.json").is_file() and "model_type" in read_json(folder / "config.json"):
                return folder
    return find(path)


def _refuse_bare(source: Path) -> None:
    """Refuse a model without token-indexed parameters."""
    from retoken.attach.checkpoint import FIELD
    from retoken.checkpoint.files import read_json

    if not isinstance(read_json(source / "config.json").get(FIELD), dict):
        raise CheckpointError(
            f"checkpoint {source} carries no token-indexed parameters; accepted without --fold, "
            "--rows, --prune and --data"
        )


@contextmanager
def _as_folder(source: Path, out: Path, bar: Bars) -> Iterator[Path]:
    """A model folder with tables: the source itself, or for a while a training checkpoint written as one."""
    from retoken.checkpoint import is_checkpoint
    from retoken.checkpoint.files import writing

    if not is_checkpoint(source):
        yield source
        return
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)
    with beside as folder:
        plain = Path(folder) / "model"
        _export_plain(source, plain, _UNITS["GB"] * 50, bar)
        yield plain


def _export_plain(source: Path, out: Path, size: int, bar: Bars) -> tuple[Exported, bool]:
    """What was written of a training checkpoint, and whether it has a tokenizer."""
    from retoken.checkpoint import checked
    from retoken.checkpoint.export import export
    from retoken.eval.loading import tokenizer_for

    found = checked(source)
    tokenizer: Any = tokenizer_for(found.path)
    beside = tokenizer.save_pretrained if tokenizer is not None else lambda folder: None
    done = export(found, out, max_shard_size=size, beside=beside, on_progress=bar("checkpoint"))
    return done, tokenizer is not None
