"""`retoken eval`: held-out loss and bits per byte of any checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from retoken.cli.options import as_json
from retoken.errors import ConfigError

if TYPE_CHECKING:
    from retoken.eval import HeldOut


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Held-out loss and bits per byte of a checkpoint, on a token store or on a text file."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """A run folder, a checkpoint in it, a folder written by save_pretrained, or hf:NAME."""
    data: Path | None = None
    """Token store written by `retoken prepare`; its held-out split is used. Or give --text."""
    text: Path | None = None
    """A plain UTF-8 text file. Or give --data."""
    context_length: int = 0
    """Tokens a prediction may look back on; 0: as in the checkpoint's run, or the model's own, up to 1024."""
    max_tokens: int = 0
    """Evaluate at most this many tokens; 0: all."""
    batch_size: int = 16
    """Windows of a forward pass."""
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
    """Benchmark tasks; not in this release."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Evaluate and print; returns the exit code."""
        self._check()
        from retoken.eval import evaluate_store, evaluate_text, open_checkpoint
        from retoken.train.world import open_world

        options = {
            "context_length": self.context_length,
            "max_tokens": self.max_tokens,
            "batch_size": self.batch_size,
        }
        with open_world(self.device, self.threads) as world:
            loaded = open_checkpoint(
                self.checkpoint,
                tables=self.tables or None,
                rows_path=self.rows_path,
                verify=self.verify,
                device=world.device,
            )
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
            raise ConfigError(
                f"--tasks is {' '.join(self.tasks)}; accepted in this release: --data or --text, no tasks yet"
            )
        if (self.data is None) == (self.text is None):
            raise ConfigError(
                "exactly one of --data and --text is needed; "
                + ("found none" if self.data is None else "found both")
            )
        for name, low in (("max_tokens", 0), ("batch_size", 1), ("threads", 0), ("context_length", 0)):
            if getattr(self, name) < low:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: {low} or more"
                )
