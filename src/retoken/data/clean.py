"""Prose out of pages: drop what is not running text, and every paragraph that was there before."""

import hashlib
import re

MIN_WORDS = 6
MIN_LETTERS = 0.78
_BLANK = re.compile(r"\n[ \t]*\n\s*")
_SPACE = re.compile(r"\s+")
_CODE = ("```", ">>>", "$ ", "#!", "<?", "{{", "import ", "def ", "class ")


class Cleaner:
    """Keeps the paragraphs of prose that have not been seen yet; state is the set of seen paragraphs.

    Memory: about 100 bytes for each paragraph kept.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def clean(self, text: str, *, lines: bool = False) -> str:
        """The prose of one document, its paragraphs separated by a blank line; "" where nothing is left.

        Args:
            text: the document.
            lines: whether a paragraph is a line; otherwise paragraphs are separated by blank lines, and the
                line breaks inside one become spaces.
        """
        text = text.replace("\r\n", "\n")
        parts = text.split("\n") if lines else _BLANK.split(text)
        return "\n\n".join(kept for part in parts if (kept := self._keep(part)))

    def _keep(self, part: str) -> str:
        paragraph = _SPACE.sub(" ", part).strip()
        if not is_prose(paragraph):
            return ""
        key = hashlib.blake2b(paragraph.casefold().encode(), digest_size=12).digest()
        if key in self._seen:
            return ""
        self._seen.add(key)
        return paragraph


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph reads as prose: six words or more, 78 % letters (spaces not counted), not code."""
    if paragraph.count(" ") + 1 < MIN_WORDS or paragraph.startswith(_CODE):
        return False
    letters = sum(map(str.isalpha, paragraph))
    return letters >= MIN_LETTERS * (len(paragraph) - paragraph.count(" "))
