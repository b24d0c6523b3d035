"""What a tokenizing worker does: documents in, token ids and document lengths of both splits out."""

import hashlib
import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from retoken.data.files import ResumableError


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeConfig:
    """What a worker needs to know; travels to it once."""

    tokenizer_file: Path
    """`tokenizer.json` of the store."""
    eos_id: int
    """Appended to every document."""
    dtype: str
    """"uint16" or "uint32"."""
    val_fraction: float
    """Share of documents held out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Consecutive documents that travel to a worker together."""

    texts: list[str]
    """The documents."""
    piece_end: dict[str, Any] | None = None
    """Where the stream stands behind this batch, if a piece of the store ends with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """One split of a batch, or of a piece."""

    ids: np.ndarray
    """Token ids [tokens], each document followed by the end-of-text token."""
    lengths: np.ndarray
    """int64 [documents], the end-of-text token included."""
    bytes: int
    """UTF-8 bytes of the text."""


def is_held_out(text: str, val_fraction: float) -> bool:
    """Whether a document is held out: by the first 8 bytes of the sha256 of its text, so that equal documents
    fall on the same side and the order or number of the others does not matter."""
    head = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return head < val_fraction * 2**64


class Encoder:
    """Tokenizes batches in this process."""

    def __init__(self, config: EncodeConfig) -> None:
        self._config = config
        self._tokenizer = Tokenizer.from_file(str(config.tokenizer_file))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # "<|endoftext|>" written out inside a document is text: it must not forge a document boundary.
        self._tokenizer.encode_special_tokens = True

    def __call__(self, texts: list[str]) -> dict[str, Encoded]:
        """Both splits of a batch of documents."""
        held = [is_held_out(text, self._config.val_fraction) for text in texts]
        return {
            name: self._encode([text for text, out in zip(texts, held, strict=True) if out is val])
            for name, val in (("train", False), ("val", True))
        }

    def _encode(self, texts: list[str]) -> Encoded:
        rows = [e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        for row in rows:
            row.append(self._config.eos_id)
        ids = [np.asarray(row, dtype=self._config.dtype) for row in rows]
        return Encoded(
            ids=np.concatenate(ids) if ids else np.zeros(0, dtype=self._config.dtype),
            lengths=np.asarray([len(row) for row in rows], dtype=np.int64),
            bytes=sum(len(text.encode()) for text in texts),
        )


@cache
def _encoder(config: EncodeConfig) -> Encoder:
    return Encoder(config)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears the interruption and winds the pool down
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed cannot wind its pool down; nobody is left to read what we would send."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _work(config: EncodeConfig, texts: list[str]) -> dict[str, Encoded]:
    return _encoder(config)(texts)


@contextmanager
def encoding(
    config: EncodeConfig, batches: Iterable[Batch], workers: int
) -> Iterator[Iterator[tuple[Batch, dict[str, Encoded]]]]:
    """Batches, each with its encoding, in their order, by `workers` processes (1: in this one).

    The result does not depend on `workers`; at most a few batches for each worker are in memory. The
    processes are gone when the block is left, however it is left.

    Raises:
        ResumableError: a worker process was killed.
    """
    if workers == 1:
        encoder = Encoder(config)
        yield ((batch, encoder(batch.texts)) for batch in batches)
        return
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield _in_order(pool, config, batches, ahead=2 * workers)
    except BrokenProcessPool:
        raise ResumableError(
            "a tokenizing worker was killed (out of memory?); the same command continues"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, config: EncodeConfig, batches: Iterable[Batch], ahead: int
) -> Iterator[tuple[Batch, dict[str, Encoded]]]:
    waiting: deque[tuple[Batch, Future[dict[str, Encoded]]]] = deque()
    for batch in batches:
        waiting.append((batch, pool.submit(_work, config, batch.texts)))
        if len(waiting) > ahead:
            done, future = waiting.popleft()
            yield done, future.result()
    while waiting:
        done, future = waiting.popleft()
        yield done, future.result()
