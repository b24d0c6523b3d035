"""The end of a preparation: side files, then the manifest."""

from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from retoken.data.claim import COUNTS, TOKEN_BYTES, TOKENIZER, tidy
from retoken.data.encode import EncodeConfig
from retoken.data.files import sha256_file, write_atomic
from retoken.data.manifest import SPLITS, Manifest, SplitInfo
from retoken.data.tokenizer import fingerprint, token_bytes


def finish(
    out: Path,
    identity: dict[str, Any],
    encode: EncodeConfig,
    splits: dict[str, SplitInfo],
    backend: Tokenizer,
    notes: tuple[str, ...],
) -> Manifest:
    """Side files, then the manifest, whose presence says that everything is there."""
    vocab_size = max(backend.get_vocab().values()) + 1
    counts = np.stack([_count(out, splits[name], encode.dtype, vocab_size) for name in SPLITS])
    write_atomic(out / COUNTS, lambda file: np.save(file, counts))
    write_atomic(out / TOKEN_BYTES, lambda file: np.save(file, token_bytes(backend, vocab_size)))
    manifest = Manifest(
        vocab_size=vocab_size,
        eos_id=encode.eos_id,
        tokenizer_fingerprint=fingerprint(out / TOKENIZER, encode.eos_id),
        dtype=encode.dtype,
        splits=splits,
        files={name: sha256_file(out / name) for name in (COUNTS, TOKEN_BYTES)},
        preparation=identity,
        notes=notes,
    )
    manifest.save(out)
    tidy(out)
    return manifest


def _count(out: Path, split: SplitInfo, dtype: str, vocab_size: int) -> np.ndarray:
    """How often each id occurs in a split, int64 [V]."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for shard in split.shards:
        counts += np.bincount(
            np.fromfile(out / shard.file, dtype=np.dtype(dtype).newbyteorder("<")), minlength=vocab_size
        )
    return counts
