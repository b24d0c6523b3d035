"""Saving while training goes on: a copy to the host, then files, in the background, then a name."""

from __future__ import annotations

import copy
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retoken.checkpoint.chunks import Chunk
from retoken.checkpoint.drive import save_chunks
from retoken.checkpoint.files import sync, writing
from retoken.checkpoint.folders import (
    Checkpoint,
    clear_left_behind,
    facts_of,
    folder_of,
    newest_path,
    partial_of,
    prune,
    put_in_place,
    write_manifest,
)
from retoken.checkpoint.index import INDEX_FILE, Index, write_index
from retoken.checkpoint.peers import Peers
from retoken.checkpoint.storage import ShardWriter


@dataclass(slots=True)
class _Job:
    step: int
    thread: threading.Thread | None = None
    failure: BaseException | None = None


@dataclass(kw_only=True)
class Saver:
    """Writes a run's checkpoints, one at a time. Every process calls the same methods in the same order.

    The lead process removes, at the start, what earlier ones left unfinished.
    """

    root: Path
    """The folder that the checkpoints lie in; all processes must see it."""
    keep: int
    """Newest checkpoints that stay."""
    peers: Peers = field(default_factory=Peers)
    texts: Mapping[str, str] = field(default_factory=dict)
    """{file name: text}: what lies beside the tensors, `build.described` of the model."""
    _job: _Job | None = None
    _done: list[Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.peers.lead:
            clear_left_behind(self.root)

    def save(self, step: int, chunks: dict[str, Chunk], state: dict[str, Any]) -> None:
        """Begin to write a checkpoint; returns while it is written. Waits for the one before it first.

        Args:
            step: Optimizer steps done.
            chunks: What this process is to write, in memory that nobody changes (`state.host_copy`).
            state: JSON-able values; the lead process's are kept.

        Raises:
            TrainingError: The checkpoint before it could not be written.
        """
        self.wait()
        self._job = job = _Job(step)
        state = copy.deepcopy(state)
        job.thread = threading.Thread(
            target=self._run, args=(job, chunks, state), name=f"checkpoint-{step}", daemon=True
        )
        job.thread.start()

    def wait(self) -> None:
        """Until no checkpoint is being written.

        Raises:
            TrainingError: It could not be written; names the last good one.
        """
        job, self._job = self._job, None
        if job is None or job.thread is None:
            return
        job.thread.join()
        if job.failure is not None:
            raise job.failure
        self._done.append(folder_of(self.root, job.step))

    def finished(self) -> list[Path]:
        """The checkpoints that were finished since this was asked last; does not wait.

        Raises:
            TrainingError: One could not be written.
        """
        if self._job is not None and self._job.thread is not None and not self._job.thread.is_alive():
            self.wait()
        done, self._done = self._done, []
        return done

    def last_good(self) -> Path | None:
        """The newest whole checkpoint, behind the one being written."""
        if self._job is not None and self._job.thread is not None:
            self._job.thread.join()
        return newest_path(self.root)

    def close(self) -> None:
        """Wait; what fails now fails silently, for something else has failed already."""
        if self._job is not None and self._job.thread is not None:
            self._job.thread.join()
        self._job = None

    def _run(self, job: _Job, chunks: dict[str, Chunk], state: dict[str, Any]) -> None:
        try:
            self._write(job.step, chunks, state)
        except BaseException as error:
            job.failure = error

    def _write(self, step: int, chunks: dict[str, Chunk], state: dict[str, Any]) -> None:
        target = folder_of(self.root, step)
        with writing(target, f"; last good checkpoint: {newest_path(self.root) or 'none'}"):
            writer = ShardWriter(
                partial_of(target), lambda index, files: self._conclude(target, step, state, index, files)
            )
            try:
                save_chunks(chunks, writer, self.peers)
            except BaseException:
                if self.peers.lead:
                    shutil.rmtree(partial_of(target), ignore_errors=True)
                raise

    def _conclude(
        self, target: Path, step: int, state: dict[str, Any], index: Index, files: dict[str, dict[str, int]]
    ) -> None:
        """In the lead process, every process's file being on the disk: what describes them, then the name."""
        partial = partial_of(target)
        for name, facts in files.items():
            if not (partial / name).is_file() or (partial / name).stat().st_size != facts["bytes"]:
                raise OSError(f"{name}, written by another process, is not there; all must share the folder")
        write_index(index, partial / INDEX_FILE)
        for name, text in self.texts.items():
            (partial / name).write_text(text, encoding="utf-8")
            sync(partial / name)
        files |= {name: facts_of(partial / name) for name in (INDEX_FILE, *self.texts)}
        write_manifest(
            Checkpoint(path=partial, step=step, world_size=self.peers.size, files=files, state=state)
        )
        put_in_place(partial, target)
        prune(self.root, self.keep)
