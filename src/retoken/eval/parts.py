"""Which part of the vocabulary a token is of: the start of a word, the inside of one, digits, punctuation."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import torch
from torch import Tensor

from retoken.eval.groups import Grouping

PARTS = ("word", "piece", "digits", "punctuation", "space", "bytes", "special")
_WORD, _PIECE, _DIGITS, _PUNCTUATION, _SPACE, _BYTES, _SPECIAL = range(len(PARTS))
_APOSTROPHES = "'’"


def part_grouping(texts: Sequence[bytes | None]) -> Grouping:
    """By part of the vocabulary.

    "word" has a letter and begins a word; "piece" has one and goes on with a word; "digits", "punctuation"
    (symbols too) and "space" have no letter; "bytes" is part of a character; "special" has no text. Whether
    letters without a space before them begin a word is seen from the token before, so that a word behind a
    quotation mark or a line end is one.

    Args:
        texts: What each id stands for [V], as `retoken.data.tokenizer.token_texts` gives it.
    """
    part_V = torch.tensor([_part(text) for text in texts])
    joins_V = torch.tensor([_joins(text) for text in texts])
    open_V = torch.tensor([_ends_inside(text) for text in texts])

    def assign(windows: Tensor) -> Tensor:
        before, targets = windows[:, :-1], windows[:, 1:]
        return torch.where(joins_V[targets] & open_V[before], _PIECE, part_V[targets])

    return Grouping(kind="part", labels=PARTS, assign=assign)


def _of(letter: str, classes: str) -> bool:
    """Whether a character is of one of Unicode's general categories: L(etter), M(ark), N(umber)."""
    return unicodedata.category(letter)[0] in classes


def _decoded(text: bytes | None) -> str | None:
    """None: nothing there, or not whole characters."""
    try:
        return text.decode() if text else None
    except UnicodeDecodeError:
        return None


def _part(text: bytes | None) -> int:
    """Of a token by itself: letters count as a word's start."""
    if not text:
        return _SPECIAL
    letters = _decoded(text)
    if letters is None:
        return _BYTES
    if letters.isspace():
        return _SPACE
    if any(_of(letter, "LM") for letter in letters):
        return _WORD
    return _DIGITS if any(_of(letter, "N") for letter in letters) else _PUNCTUATION


def _joins(text: bytes | None) -> bool:
    """Whether a token with letters goes on with the word before it, if there is one."""
    letters = _decoded(text)
    if letters is None or not any(_of(letter, "LM") for letter in letters):
        return False
    return _of(letters[0], "LMN") or letters[0] in _APOSTROPHES


def _ends_inside(text: bytes | None) -> bool:
    """Whether letters behind this token would go on with its word. Part of a character: mostly a letter's."""
    if not text:
        return False
    letters = _decoded(text)
    return letters is None or _of(letters[-1], "LMN") or letters in _APOSTROPHES
