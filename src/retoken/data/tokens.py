"""Reading a token store: open it, check it, get its splits, tokenizer and per-token sizes."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from retoken.data.claim import COUNTS, TOKEN_BYTES, TOKENIZER
from retoken.data.files import first_line, sha256_file
from retoken.data.manifest import SPLITS, Manifest, ShardInfo, SplitInfo
from retoken.data.shards import TokenSplit
from retoken.data.tokenizer import fingerprint
from retoken.data.windows import WindowReader, bytes_of, eval_starts, eval_windows
from retoken.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = [
    "Manifest",
    "ShardInfo",
    "SplitInfo",
    "TokenSplit",
    "TokenStore",
    "WindowReader",
    "bytes_of",
    "eval_starts",
    "eval_windows",
]


class TokenStore:
    """A prepared corpus. Made by `TokenStore.open`."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._splits = {
            name: TokenSplit(folder, name, manifest.splits[name], manifest.dtype) for name in SPLITS
        }

    @classmethod
    def open(cls, folder: str | Path) -> "TokenStore":
        """Opens a store and compares the size of every shard with the manifest (cheap; `verify` reads them).

        Raises:
            DataError: no store there, an unfinished one, a truncated or foreign manifest or shard.
        """
        folder = Path(folder)
        store = cls(folder, Manifest.load(folder))
        for name in (*store.manifest.files, f"{TOKENIZER}/tokenizer.json"):
            if not (folder / name).is_file():
                raise DataError(f"{folder / name} is missing")
        return store

    def split(self, name: str) -> TokenSplit:
        """ "train" or "val".

        Raises:
            ConfigError: another name.
        """
        if name not in self._splits:
            raise ConfigError(f"split is '{name}'; accepted: {', '.join(self._splits)}")
        return self._splits[name]

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer that made these ids, with the store's end-of-text token as its eos.

        Raises:
            DataError: it does not load.
        """
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder / TOKENIZER)
        except Exception as error:
            raise DataError(f"{self.folder / TOKENIZER} does not load: {first_line(error)}") from None

    def token_bytes(self) -> torch.Tensor:
        """Bytes of text each vocabulary id stands for, int64 [V]; 0 for special tokens."""
        return torch.from_numpy(self._array(TOKEN_BYTES, (self.manifest.vocab_size,)))

    def token_counts(self, split: str = "train") -> torch.Tensor:
        """How often each id occurs in a split, int64 [V]."""
        counts = self._array(COUNTS, (len(SPLITS), self.manifest.vocab_size))
        self.split(split)
        return torch.from_numpy(counts[SPLITS.index(split)])

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        path = self.folder / name
        try:
            found = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} cannot be read: {first_line(error)}") from None
        if found.shape != shape:
            raise DataError(f"{path} has shape {list(found.shape)}; its manifest says {list(shape)}: foreign")
        return found.astype(np.int64)

    def verify(self) -> None:
        """Reads everything and compares it with the manifest's hashes.

        Raises:
            DataError: naming the first file that differs.
        """
        wanted = dict(self.manifest.files)
        for split in self.manifest.splits.values():
            for shard in split.shards:
                wanted |= {shard.file: shard.sha256, shard.offsets_file: shard.offsets_sha256}
        for name, digest in wanted.items():
            found = sha256_file(self.folder / name)
            if found != digest:
                raise DataError(
                    f"{self.folder / name} has sha256 {found}; its manifest says {digest}: damaged"
                )
        if fingerprint(self.folder / TOKENIZER, self.manifest.eos_id) != self.manifest.tokenizer_fingerprint:
            raise DataError(
                f"{self.folder / TOKENIZER} is not the tokenizer of this store (other fingerprint)"
            )
