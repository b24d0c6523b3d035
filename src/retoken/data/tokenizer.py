"""The tokenizer of a store: loaded or trained here, its fingerprint, and the bytes each id stands for."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from retoken.data.files import first_line
from retoken.errors import ConfigError, DataError

EOS = "<|endoftext|>"
MIN_BPE = 257
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A Hugging Face tokenizer by name or path.

    Raises:
        DataError: not found or not readable.
        ConfigError: it has no fast backend or no end-of-text token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises many types here; each means that it can't be had
        raise DataError(
            f"--tokenizer '{name}' cannot be loaded: {first_line(error)} "
            "(accepted: 'bpe', a folder with tokenizer.json, or a Hugging Face name)"
        ) from None
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ConfigError(
            f"--tokenizer '{name}' has no fast version (tokenizer.json); accepted: fast tokenizers"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"--tokenizer '{name}' has no eos_token; accepted: a tokenizer that ends a text with one"
        )
    return tokenizer


def check_same(
    name: str, tokenizer: PreTrainedTokenizerBase, where: str, other: PreTrainedTokenizerBase
) -> None:
    """Refuse token ids at `where`, made by another tokenizer than a model's.

    Raises:
        DataError: a token has another id; names it, `where` and the model `name`.
    """
    theirs, ours = tokenizer.get_vocab(), other.get_vocab()
    wrong = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if wrong:
        raise DataError(
            f"{where}: tokenized by another tokenizer than {name}'s (token {wrong[0]!r} has id "
            f"{ours.get(wrong[0])} and {theirs.get(wrong[0])}); accepted: data prepared with that tokenizer"
        )


def visible(tokenizer: Tokenizer, token: int) -> str:
    """A token's text with white space made visible; the tokenizer's own spelling of a part of a character."""
    text = tokenizer.decode([token], skip_special_tokens=False)
    if not text or "\N{REPLACEMENT CHARACTER}" in text:
        return tokenizer.id_to_token(token) or f"id {token}"
    return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE in the manner of GPT-2, its end-of-text token included in `vocab_size`.

    A small corpus may give fewer entries than asked for; the caller reads the size off the result.

    Raises:
        ConfigError: `vocab_size` does not hold the 256 bytes and the end-of-text token.
    """
    if vocab_size < MIN_BPE:
        raise ConfigError(f"--vocab-size is {vocab_size}; accepted: {MIN_BPE} or more (256 bytes and {EOS})")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=EOS,
        bos_token=EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def eos_of(tokenizer: PreTrainedTokenizerFast) -> int:
    """The end-of-text id of a tokenizer that `load_tokenizer` or `train_bpe` returned."""
    return cast(int, tokenizer.eos_token_id)


def fingerprint(folder: Path, eos_id: int) -> str:
    """sha256 of `folder/tokenizer.json` and the end-of-text id: what decides which ids a text becomes."""
    content = (folder / "tokenizer.json").read_bytes()
    return hashlib.sha256(content + f"\n{eos_id}".encode()).hexdigest()


def token_bytes(backend: Tokenizer, vocab_size: int) -> np.ndarray:
    """Bytes of text each id stands for, int32 [V]; special tokens and unused ids 0.

    Byte-level vocabularies: each character of an entry is one byte. Sentencepiece-like ones: "▁" is a space,
    "<0xNN>" one byte. WordPiece: the continuation mark is dropped.
    """
    sizes = np.zeros(vocab_size, dtype=np.int32)
    measure = _measure(json.loads(backend.to_str()).get("decoder") or {})
    for token, index in backend.get_vocab(with_added_tokens=False).items():
        sizes[index] = measure(token)
    for index, added in backend.get_added_tokens_decoder().items():
        sizes[index] = 0 if added.special else len(added.content.encode())
    return sizes


def token_texts(backend: Tokenizer, vocab_size: int) -> list[bytes | None]:
    """The text each id stands for, as bytes [V]: one may be part of a character. None: special, or unused.

    Spaces are where the tokenizer keeps them: before a word, in byte-level and sentencepiece-like ones.
    WordPiece keeps none, so one stands before every entry without the continuation mark.
    """
    texts: list[bytes | None] = [None] * vocab_size
    spell = _spelling(json.loads(backend.to_str()).get("decoder") or {})
    for token, index in backend.get_vocab(with_added_tokens=False).items():
        texts[index] = spell(token)
    for index, added in backend.get_added_tokens_decoder().items():
        texts[index] = None if added.special else added.content.encode()
    return texts


def _kinds(decoder: dict[str, Any]) -> set[Any]:
    return {decoder.get("type")} | {part.get("type") for part in decoder.get("decoders", [])}


def _measure(decoder: dict[str, Any]) -> Any:
    kinds = _kinds(decoder)
    if "ByteLevel" in kinds:
        return len
    if "WordPiece" in kinds:
        prefix = decoder.get("prefix", "##")
        return lambda token: len(token.removeprefix(prefix).encode())
    return lambda token: len(_piece(token))


def _spelling(decoder: dict[str, Any]) -> Callable[[str], bytes]:
    kinds = _kinds(decoder)
    if "ByteLevel" in kinds:
        byte_of = _byte_alphabet()
        return lambda token: b"".join(byte_of.get(letter, letter.encode()) for letter in token)
    if "WordPiece" in kinds:
        prefix = decoder.get("prefix", "##")
        return lambda token: (
            token.removeprefix(prefix) if token.startswith(prefix) else f" {token}"
        ).encode()
    return _piece


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's letter of each byte, backwards: printable ones stand for themselves, the others for 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): bytes([byte]) for byte in plain}
    return letters | {chr(256 + place): bytes([byte]) for place, byte in enumerate(rest)}


def _piece(token: str) -> bytes:
    if byte := _BYTE.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace("▁", " ").encode()
