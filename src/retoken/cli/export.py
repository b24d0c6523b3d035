"""`retoken export`: a checkpoint as a model folder, plain or with folded and packed rows."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from retoken.cli.export_view import Bars, bars, lines_of
from retoken.cli.options import as_json
from retoken.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from retoken.checkpoint.export import Exported
    from retoken.data.tokens import TokenStore
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
    """Row type of the packed file; empty: as they are with --fold, int8 where only the loss is asked for."""
    data: Path | None = None
    """Token store to measure the loss of each row type on; else the run's own, where it is there."""
    loss: Literal["auto", "on", "off"] = "auto"
    """Whether to measure it; "auto": of packed rows, where there is a store."""
    eval_tokens: int = 65536
    """Held-out tokens to measure it on; 0: all."""
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
        return self.fold or self.rows != "" or self.data is not None or self.loss == "on"

    def _pack(self) -> None:
        from retoken.eval.loading import tokenizer_for
        from retoken.serving.artifact import write_artifact

        source = find_source(self.checkpoint)
        _refuse_bare(source)
        tokenizer = tokenizer_for(source)
        store = self._store(source, tokenizer)
        rows = self.rows or (None if self.fold else DEFAULT_ROWS)

        def beside(folder: Path) -> None:
            if tokenizer is not None and not any(folder.glob("tokenizer*")):
                tokenizer.save_pretrained(folder)

        with bars() as bar, _as_folder(source, self.out, bar) as folder:
            made = write_artifact(
                folder, self.out, fold=self.fold, rows=rows, beside=beside, on_progress=bar("rows")
            )
            costs = self._costs(source, folder, store, made, tokenizer, bar) if store else []
        self._show_packed(source, made, costs, tokenizer is not None)

    def _store(self, source: Path, tokenizer: Any) -> Path | None:
        """The store to measure on; what is wrong with it is told before anything is written."""
        from retoken.data.tokens import TokenStore
        from retoken.eval.material import check_tokenizer

        if self.loss == "off":
            return None
        store = TokenStore.open(self.data) if self.data is not None else _store_of_run(source)
        if store is None and self.loss == "on":
            raise ConfigError(f"--loss is on and {source} has no run with its store; accepted: --data STORE")
        if store is not None and tokenizer is not None:
            check_tokenizer(str(source), tokenizer, store)
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

    def _show_packed(self, source: Path, made: Artifact, costs: list[RowCost], with_tokenizer: bool) -> None:
        if self.json:
            losses = {"losses": [cost.to_dict() for cost in costs]}
            found = {"checkpoint": str(source), **made.to_dict(), "tokenizer": with_tokenizer, **losses}
            print(as_json(found))
            return
        print("\n".join(lines_of(made, costs, with_tokenizer)))

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
        if self.loss == "off" and self.data is not None:
            raise ConfigError(f"--data is {self.data} and --loss is off; accepted: one of them")
        if self._packs and self.max_shard_size != DEFAULT_SHARD:
            raise ConfigError(
                f"--max-shard-size is {self.max_shard_size}; accepted without --fold, --rows and --data: "
                "packed rows are one file"
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


def _store_of_run(source: Path) -> TokenStore | None:
    """The store that the run of a checkpoint was trained on; None: no run, or it has moved on since."""
    from retoken.data.tokens import TokenStore
    from retoken.errors import DataError
    from retoken.eval.loading import run_of

    run = run_of(source)
    try:
        return TokenStore.open(run.data) if run else None
    except DataError:
        return None


def _refuse_bare(source: Path) -> None:
    """Refuse a model without token-indexed parameters."""
    from retoken.attach.checkpoint import FIELD
    from retoken.checkpoint.files import read_json

    if not isinstance(read_json(source / "config.json").get(FIELD), dict):
        raise CheckpointError(
            f"checkpoint {source} carries no token-indexed parameters; accepted without --fold, --rows "
            "and --data"
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
