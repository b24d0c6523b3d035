"""`retoken generate --chat`: turns in, turns out."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from retoken.errors import ConfigError

Turn = dict[str, str]
"""`role` and `content`, as chat templates take them."""


def users_turns(first: str) -> Iterator[str]:
    """The first turn, then a line of standard input each, until it ends."""
    if first:
        yield first
    asks = sys.stdin.isatty()
    while True:
        if asks:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def talk(tokenizer: Any, first: str, answer: Callable[[Tensor], Tensor]) -> list[Turn]:
    """Hold a conversation; returns all turns.

    Args:
        tokenizer: with a chat template.
        first: the user's first turn; "": the first line of standard input.
        answer: new ids [N] after ids [1, T].

    Raises:
        ConfigError: the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "--chat needs a chat template, which this tokenizer has not; accepted: --prompt without --chat"
        )
    turns: list[Turn] = []
    for said in users_turns(first):
        turns.append({"role": "user", "content": said})
        asked = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        new = answer(asked["input_ids"])
        turns.append({"role": "assistant", "content": tokenizer.decode(new, skip_special_tokens=True)})
    return turns
