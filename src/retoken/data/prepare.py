"""Text to token shards: claim the folder, get the tokenizer, encode piece by piece, write the manifest."""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from retoken.data.claim import TOKENIZER, claim, discard
from retoken.data.config import PrepareConfig
from retoken.data.corpus import Documents, open_corpus
from retoken.data.encode import Batch, EncodeConfig, Encoded, encoding, is_held_out
from retoken.data.files import DiskError, ResumableError, write_bytes
from retoken.data.finish import finish
from retoken.data.manifest import MANIFEST, Manifest, SplitInfo
from retoken.data.packages import cache_folder
from retoken.data.pieces import completed, plan, summarise, write_pieces
from retoken.data.progress import Reporter
from retoken.data.prose import pinned_sources
from retoken.data.stream import Corpus
from retoken.data.tokenizer import eos_of, fingerprint, load_tokenizer, train_bpe
from retoken.errors import DataError, RetokenError

MIN_SPLIT_TOKENS = 128


def prepare(config: PrepareConfig, progress: Reporter | None = None) -> Manifest:
    """Prepares a corpus, continues an interrupted preparation, or returns a finished one as it is.

    The bytes written depend on the text, the tokenizer and `config.settings()` only: not on the number of
    workers, on interruptions, or on where the corpus and the output lie.

    Args:
        config: what to do.
        progress: hears notes and progress; by default notes go to stderr.

    Raises:
        DataError: the corpus or tokenizer is missing or broken, a split would be too small, or `config.out`
            holds something else. A fault in the corpus removes what this preparation wrote; a failure of the
            disk, the network or a worker (`ResumableError`) keeps it, for the same command to continue.
        ConfigError: an option is out of range, or the tokenizer has no end-of-text token.
    """
    progress = progress or Reporter()
    with _alone(config.out, progress), tempfile.TemporaryDirectory(prefix="retoken-") as staging:
        identity = _identity(config, Path(staging))
        if _already_there(config, identity):
            return Manifest.load(config.out)
        progress.update("open corpus", 0, None)
        corpus = open_corpus(config)
        progress.update("open corpus", corpus.total_bytes or 0, corpus.total_bytes)
        for note in corpus.notes:
            progress.note(note)
        identity |= {"corpus": corpus.name, "sources": list(corpus.sources)}
        if claim(config.out, identity):
            return Manifest.load(config.out)
        try:
            return _prepare(config, corpus, identity, Path(staging), progress)
        except RetokenError as error:
            if not isinstance(error, ResumableError):
                discard(config.out)
            raise


@contextmanager
def _alone(out: Path, progress: Reporter) -> Iterator[None]:
    """Keeps two processes from preparing the same folder; the second waits, and then finds it finished."""
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:32]
    locks = cache_folder() / "locks"
    try:
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / f"{name}.lock")
        if not _try(lock):
            progress.note(f"another process is preparing {out}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise DiskError(f"cannot lock in {locks} ($RETOKEN_CACHE): {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


def _try(lock: BaseFileLock) -> bool:
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


def _identity(config: PrepareConfig, staging: Path) -> dict[str, Any]:
    """What was asked for, before the corpus is opened; a tokenizer by name is saved to `staging`."""
    named = config.corpus in ("default", "builtin")
    identity: dict[str, Any] = {"asked": config.corpus if named else "", "settings": config.settings()}
    local = Path(config.tokenizer).is_dir()
    identity["tokenizer"] = Path(config.tokenizer).name if local else config.tokenizer
    if config.tokenizer != "bpe":
        tokenizer = load_tokenizer(config.tokenizer)
        identity["fingerprint"] = _save(tokenizer, staging)
    return identity


def _save(tokenizer: PreTrainedTokenizerFast, folder: Path) -> str:
    tokenizer.save_pretrained(folder)
    return fingerprint(folder, eos_of(tokenizer))


def _already_there(config: PrepareConfig, identity: dict[str, Any]) -> bool:
    """Whether the finished store of a corpus of ours is there: its packages need not be fetched again."""
    if not identity["asked"] or not (config.out / MANIFEST).is_file():
        return False
    manifest = Manifest.load(config.out)
    there = manifest.preparation
    same = all(there.get(key) == value for key, value in identity.items())
    return same and (
        config.corpus == "builtin" or bool(manifest.notes) or there["sources"] == pinned_sources()
    )


def _prepare(
    config: PrepareConfig, corpus: Corpus, identity: dict[str, Any], staging: Path, progress: Reporter
) -> Manifest:
    backend, eos_id = _tokenizer(config, corpus, staging, progress)
    vocab_size = max(backend.get_vocab().values()) + 1
    dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
    encode = EncodeConfig(
        tokenizer_file=config.out / TOKENIZER / "tokenizer.json",
        eos_id=eos_id,
        dtype=dtype,
        val_fraction=config.val_fraction,
    )
    splits = summarise(_pieces(config, corpus, encode, progress))
    _check_sizes(config, splits)
    return finish(config.out, identity, encode, splits, backend, corpus.notes)


def _tokenizer(
    config: PrepareConfig, corpus: Corpus, staging: Path, progress: Reporter
) -> tuple[Tokenizer, int]:
    """Puts the tokenizer into the output folder if it isn't there yet; its backend and end-of-text id."""
    folder = config.out / TOKENIZER
    if not (folder / "tokenizer.json").is_file():
        if config.tokenizer == "bpe":
            _save(train_bpe(_training_text(config, corpus, progress), config.vocab_size), staging)
        files = sorted(
            staging.iterdir(), key=lambda file: file.name == "tokenizer.json"
        )  # its presence: complete
        for file in files:
            write_bytes(folder / file.name, file.read_bytes())
    tokenizer = load_tokenizer(str(folder))
    if config.tokenizer == "bpe" and len(tokenizer) < config.vocab_size:
        progress.note(f"the corpus gives a BPE of {len(tokenizer)} entries, of {config.vocab_size} asked for")
    return tokenizer.backend_tokenizer, eos_of(tokenizer)


def _training_text(config: PrepareConfig, corpus: Corpus, progress: Reporter) -> Iterator[str]:
    """Documents of the train split until `bpe_bytes` (and never beyond `max_bytes` of the corpus)."""
    limit = min(
        config.bpe_bytes, config.max_bytes or config.bpe_bytes, corpus.total_bytes or config.bpe_bytes
    )
    taken = seen = 0
    for text, size in Documents(config, corpus):
        seen += size
        if not is_held_out(text, config.val_fraction):
            taken += size
            yield text
            progress.update("train BPE", taken, limit)
        if taken >= config.bpe_bytes or (config.max_bytes and seen >= config.max_bytes):
            break
    progress.update("train BPE", taken, taken)


def _pieces(
    config: PrepareConfig, corpus: Corpus, encode: EncodeConfig, progress: Reporter
) -> list[dict[str, Any]]:
    """Records of all pieces: those that earlier runs completed, and the rest."""
    records = completed(config.out)
    seen = records[-1]["seen"] if records else 0
    if records and records[-1]["last"]:
        return records
    documents = Documents(config, corpus)
    if records:
        progress.note(f"continuing behind {len(records)} finished pieces ({seen} bytes of text)")
        documents.seek(records[-1]["stream"])
    batches = plan(
        documents, documents.stream, shard_bytes=config.shard_bytes, max_bytes=config.max_bytes, seen=seen
    )
    total = min(filter(None, (corpus.total_bytes, config.max_bytes)), default=None)
    with encoding(encode, batches, config.worker_count(total)) as encoded:
        told = _told(encoded, progress, seen, total)
        records.extend(write_pieces(config.out, told, first=len(records)))
    return records


def _told(
    encoded: Iterator[tuple[Batch, dict[str, Encoded]]], progress: Reporter, done: int, total: int | None
) -> Iterator[tuple[Batch, dict[str, Encoded]]]:
    """Passes batches through and tells how much text they held."""
    for batch, splits in encoded:
        done += sum(split.bytes for split in splits.values())
        progress.update("tokenize", done, total)
        yield batch, splits


def _check_sizes(config: PrepareConfig, splits: dict[str, SplitInfo]) -> None:
    for name, split in splits.items():
        if split.tokens < MIN_SPLIT_TOKENS:
            documents = sum(other.documents for other in splits.values())
            raise DataError(
                f"--corpus {config.corpus}: too small: '{name}' gets {split.documents} of {documents} "
                f"documents and {split.tokens} tokens at --val-fraction {config.val_fraction}; "
                f"accepted: {MIN_SPLIT_TOKENS} tokens or more in each split"
            )
