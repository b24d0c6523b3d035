"""From arguments to a verb's dataclass: tyro reads them, and its boxed complaints become one line."""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
from collections.abc import Iterator
from typing import Any, TypeVar

T = TypeVar("T")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FAILED_CLASS = re.compile(r"^Error parsing \w[\w.]*: ")
_TELLS_NOTHING = ("Value error", "Missing argument", "Invalid choice")
_FRAME = " \t│╭╮╰╯─"


class UsageError(Exception):
    """Options that a verb does not have, or values it cannot read."""


def parse(command: type[T], prog: str, args: list[str]) -> T | None:
    """An instance of `command` with the options in `args`; None where help was asked for and printed.

    Raises:
        UsageError: an option is missing, unknown or cannot be read; one line.
    """
    import tyro

    complaint = io.StringIO()
    # Help is wrapped at the terminal's width; a complaint must not be, or a long path breaks in two.
    width = contextlib.nullcontext() if {"-h", "--help"} & set(args) else _wide_terminal()
    try:
        with width, contextlib.redirect_stderr(complaint):
            return tyro.cli(command, args=args, prog=prog)
    except SystemExit as leave:
        if leave.code in (0, None):
            return None
        raise UsageError(_one_line(complaint.getvalue(), prog)) from None


def _one_line(box: str, prog: str) -> str:
    """The title and the first section of tyro's box, drawn in ASCII or not; what follows is help text."""
    title, *rest = [_COLOUR.sub("", line).strip(_FRAME) for line in box.splitlines() if line.strip()] or [""]
    rest = list(itertools.dropwhile(_is_rule, rest))
    body = " ".join(itertools.takewhile(lambda line: not _is_rule(line), rest))
    body = body.removeprefix(f"Missing from {prog}:").removeprefix(f"{title}:").strip()
    body = _FAILED_CLASS.sub("", body)
    head = "" if title in _TELLS_NOTHING else f"{title.lower()}: "
    return f"{head}{body}; `{prog} --help` lists the options"


def _is_rule(line: str) -> bool:
    return not line.strip("- ")


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """tyro wraps what it prints at the terminal's width, which it reads from COLUMNS."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def quiet_libraries() -> None:
    """Keep other libraries' bars and advice off stderr: a verb speaks for itself there."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def as_json(value: Any) -> str:
    """How `--json` prints: one object, sorted as given, readable."""
    import json

    return json.dumps(value, indent=2, ensure_ascii=False)
