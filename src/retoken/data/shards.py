"""One split of a token store: its shards, memory-mapped, read as one long row of tokens."""

from pathlib import Path

import numpy as np

from retoken.data.manifest import SplitInfo
from retoken.errors import DataError


class TokenSplit:
    """The tokens of one split; `len` is their number. Nothing is read before it is asked for.

    Raises:
        DataError: a shard is missing or has another size than the manifest says.
    """

    def __init__(self, folder: Path, name: str, info: SplitInfo, dtype: str) -> None:
        self.name = name
        self.info = info
        self._folder = folder
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._shards = [self._map(shard.file, shard.tokens) for shard in info.shards]
        self._starts = np.cumsum([0, *(shard.tokens for shard in info.shards)])

    def _map(self, file: str, tokens: int) -> np.ndarray:
        path = self._folder / file
        try:
            found = path.stat().st_size
        except OSError as error:
            raise DataError(f"shard {path} cannot be read: {error.strerror or error}") from None
        wanted = tokens * self._dtype.itemsize
        if found != wanted:
            raise DataError(
                f"shard {path} has {found} bytes; its manifest says {wanted}: truncated or foreign"
            )
        return np.memmap(path, dtype=self._dtype, mode="r", shape=(tokens,))

    def __len__(self) -> int:
        return self.info.tokens

    def read(self, start: int, length: int) -> np.ndarray:
        """Tokens [length] from `start`, across shard borders, int64, owned by the caller.

        Raises:
            IndexError: the range is not inside the split.
        """
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start}..{start + length} of a split of {len(self)}")
        out = np.empty(length, dtype=np.int64)
        done = 0
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while done < length:
            begin = start + done - int(self._starts[shard])
            part = self._shards[shard][begin : begin + length - done]
            out[done : done + len(part)] = part
            done += len(part)
            shard += 1
        return out

    def document_offsets(self) -> np.ndarray:
        """Where each document starts in the split, and the end: int64 [documents + 1].

        Raises:
            DataError: a file of offsets is missing or is none.
        """
        parts = [np.zeros(1, dtype=np.int64)]
        for shard, start in zip(self.info.shards, self._starts, strict=False):
            path = self._folder / shard.offsets_file
            try:
                offsets = np.load(path, allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"document offsets {path} cannot be read: {error}") from None
            if len(offsets) != shard.documents + 1 or offsets[-1] != shard.tokens:
                raise DataError(f"document offsets {path} do not fit {shard.file}: truncated or foreign")
            parts.append(offsets[1:] + start)
        return np.concatenate(parts)
