"""What `retoken prepare` is asked to do."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retoken.errors import ConfigError

# Below this, starting processes takes longer than they save; one process tokenizes on all cores by threads.
SMALL_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareConfig:
    """Options of a preparation: text in, token shards out."""

    # tyro shows these texts with their line breaks: a line is a clause.

    out: Path
    """Folder for the token shards, the tokenizer and the manifest.
    An interrupted preparation goes on; a folder of another one is refused."""
    corpus: str = "default"
    """Where the text comes from.
    default: about 26 MB of English prose out of pip packages, cached
    builtin: the prose that this Python carries, 1.7 MB
    a path: a .txt, .jsonl or .parquet file (also .gz, .zst) or a folder of them
    hf:NAME: a Hugging Face dataset, streamed: hf:HuggingFaceFW/fineweb-edu"""
    tokenizer: str = "bpe"
    """bpe: train a byte-level BPE on the train split.
    Anything else: name or path of a Hugging Face tokenizer."""
    vocab_size: int = 8192
    """Entries of the BPE, its end-of-text token included; 257 or more."""
    bpe_bytes: int = 256 << 20
    """Train the BPE on the first so many bytes of the train split."""
    field: str = "text"
    """Which field of a jsonl, parquet or dataset record holds the text."""
    subset: str = ""
    """Configuration of a Hugging Face dataset, such as sample-10BT."""
    hf_split: str = "train"
    """Split of a Hugging Face dataset to read; train and val are both cut from it."""
    revision: str = ""
    """Branch, tag or commit of a Hugging Face dataset; the newest by default."""
    documents: Literal["auto", "file", "section"] = "auto"
    """What a document is in .txt files.
    file: the whole file
    section: a part of it that ends at the first blank line behind 4 KiB
    auto: file where there are 100 files or more, section otherwise"""
    clean: bool = False
    """Keep only paragraphs of prose, and each only once.
    The default and builtin corpora always are."""
    val_fraction: float = 0.03
    """Share of documents held out, by a hash of each document's text."""
    max_bytes: int = 0
    """Stop behind this many bytes of text; 0 for all of it."""
    shard_bytes: int = 64 << 20
    """Bytes of text of a shard: what an interruption can cost at most."""
    workers: int = 0
    """Tokenizing processes; the bytes written do not depend on it.
    0: one on each core, or only threads for a corpus below 64 MiB."""

    def __post_init__(self) -> None:
        for name, low in (("bpe_bytes", 1), ("shard_bytes", 1), ("max_bytes", 0), ("workers", 0)):
            if getattr(self, name) < low:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: {low} or more"
                )
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"--val-fraction is {self.val_fraction}; accepted: above 0 and below 1")
        if self.tokenizer == "bpe" and self.vocab_size < 257:
            raise ConfigError(
                f"--vocab-size is {self.vocab_size}; "
                "accepted: 257 or more (256 bytes and the end-of-text token)"
            )
        if not self.corpus or self.corpus == "hf:":
            raise ConfigError(f"--corpus is '{self.corpus}'; accepted: default, builtin, a path, or hf:NAME")

    def worker_count(self, total_bytes: int | None) -> int:
        """Processes that tokenize `total_bytes` of text (None: unknown); 1 means threads of this process."""
        if self.workers:
            return self.workers
        if total_bytes is not None and total_bytes < SMALL_BYTES:
            return 1
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def settings(self) -> dict[str, Any]:
        """What decides the bytes written, apart from the sources themselves and the tokenizer."""
        trained = (
            {"vocab_size": self.vocab_size, "bpe_bytes": self.bpe_bytes} if self.tokenizer == "bpe" else {}
        )
        names = (
            "field",
            "subset",
            "hf_split",
            "documents",
            "clean",
            "val_fraction",
            "max_bytes",
            "shard_bytes",
        )
        return {name: getattr(self, name) for name in names} | trained
