"""The manifest of a token store: what is in the folder, and how to tell that it is all there."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retoken.data.files import read_json, write_json
from retoken.errors import DataError

MANIFEST = "manifest.json"
FORMAT = "retoken.tokens"
FORMAT_VERSION = 1
SPLITS = ("train", "val")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """One memory-mapped file of tokens and its document boundaries."""

    file: str
    """Raw little-endian token ids."""
    tokens: int
    """Tokens in `file`."""
    documents: int
    """Documents in `file`; each ends with the end-of-text token."""
    sha256: str
    """Hex digest of `file`."""
    offsets_file: str
    """int64 `.npy` [documents + 1]: where each document starts in `file`, and the end."""
    offsets_sha256: str
    """Hex digest of `offsets_file`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitInfo:
    """One split: its totals and its shards in reading order."""

    tokens: int
    """Tokens, the end-of-text tokens included."""
    documents: int
    """Documents."""
    bytes: int
    """UTF-8 bytes of the documents' text, the end-of-text tokens not counted."""
    shards: tuple[ShardInfo, ...]
    """Shards in reading order; never empty files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Everything a reader needs to know about a token store."""

    vocab_size: int
    """Vocabulary of the tokenizer, added tokens included: every id is below it."""
    eos_id: int
    """The token that ends every document."""
    tokenizer_fingerprint: str
    """sha256 of the fast tokenizer's serialisation (`tokenizer/tokenizer.json`) and its end-of-text id."""
    dtype: str
    """"uint16" or "uint32", little-endian."""
    splits: dict[str, SplitInfo]
    """"train" and "val"."""
    files: dict[str, str]
    """Side files and their sha256: token frequencies, bytes per token."""
    preparation: dict[str, Any]
    """What was asked for and what it was made of: corpus, sources (names, sizes, hashes, licences),
    tokenizer, settings. Equal preparations give equal bytes."""
    notes: tuple[str, ...] = ()
    """What a reader should know, such as a fallback corpus."""

    def save(self, folder: Path) -> None:
        """Writes `folder/manifest.json` atomically; its presence means that the preparation is complete."""
        write_json(folder / MANIFEST, {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Reads `folder/manifest.json`.

        Raises:
            DataError: missing, truncated, foreign, or written by a newer version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise DataError(_absent(folder))
        value = read_json(path)
        if value.pop("format", None) != FORMAT:
            raise DataError(f'{path} is not a token store\'s manifest (no "format": "{FORMAT}"): foreign')
        version = value.pop("format_version", None)
        if version != FORMAT_VERSION:
            raise DataError(f"{path} has format_version {version}; this version reads {FORMAT_VERSION}")
        try:
            return _from_dict(value)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} lacks or misnames a field ({error}): truncated or foreign") from None


def _absent(folder: Path) -> str:
    if not folder.exists():
        return f"{folder} does not exist; make it with `retoken prepare --out {folder}`"
    if (folder / "preparation.json").is_file():
        return f"{folder} holds an unfinished preparation; run the same `retoken prepare` again to finish it"
    return f"{folder} is not a prepared token store: it has no {MANIFEST}"


def _from_dict(value: dict[str, Any]) -> Manifest:
    splits = {
        name: SplitInfo(**{**split, "shards": tuple(ShardInfo(**shard) for shard in split["shards"])})
        for name, split in value["splits"].items()
    }
    if set(splits) != set(SPLITS):
        raise KeyError(f"splits {sorted(splits)}")
    return Manifest(**{**value, "notes": tuple(value["notes"]), "splits": splits})
