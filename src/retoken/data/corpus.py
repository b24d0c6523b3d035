"""From `--corpus` to documents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retoken.data.clean import Cleaner
from retoken.data.config import PrepareConfig
from retoken.data.hub import hub_corpus
from retoken.data.prose import builtin_corpus, default_corpus
from retoken.data.sources import file_corpus
from retoken.data.stream import Corpus, TextStream


def open_corpus(config: PrepareConfig) -> Corpus:
    """The corpus that `config.corpus` names.

    Raises:
        DataError: it is missing or broken.
    """
    if config.corpus == "default":
        return default_corpus()
    if config.corpus == "builtin":
        return builtin_corpus()
    if config.corpus.startswith("hf:"):
        return hub_corpus(
            config.corpus.removeprefix("hf:"),
            subset=config.subset,
            split=config.hf_split,
            revision=config.revision,
            field=config.field,
        )
    return file_corpus(Path(config.corpus), field=config.field, documents=config.documents)


class Documents:
    """The corpus as (document, UTF-8 bytes), cleaned if asked, from a position on."""

    def __init__(self, config: PrepareConfig, corpus: Corpus) -> None:
        self.stream: TextStream = corpus.open()
        self._cleaner = Cleaner() if config.clean else None
        self._skip = 0

    def seek(self, position: dict[str, Any]) -> None:
        """Continues from a position of `stream`; call before iterating."""
        if self._cleaner is None:
            self.stream.seek(position)
        else:  # what was seen decides what is a repetition, so it is read and cleaned again
            self._skip = int(position["documents"])

    def __iter__(self) -> Iterator[tuple[str, int]]:
        for index, text in enumerate(self.stream):
            if self._cleaner is not None:
                text = self._cleaner.clean(text)
            if index >= self._skip and text and not text.isspace():
                yield text, len(text.encode())
