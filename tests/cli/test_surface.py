"""The outside of the package: verbs, their options and the public names. A change must be meant.

After a change that is meant: python tests/cli/test_surface.py > tests/cli/surface.txt
"""

import contextlib
import io
import re
import sys
from pathlib import Path

import retoken
from retoken.cli.main import VERBS, main

SECOND_WORDS = {
    "bench": ("train", "decode", "lookup", "kernels", "optimizer", "exchange"),
    "scaling": ("plan", "run", "fit", "predict", "plot"),
}
SNAPSHOT = Path(__file__).with_name("surface.txt")


def commands() -> list[str]:
    """Verbs, and for those that go by a second word, both."""
    return [f"{verb} {word}".strip() for verb in VERBS for word in SECOND_WORDS.get(verb, ("",))]


def options_of(command: str) -> list[str]:
    """The long options that a command's help lists, in its order."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*command.split(), "--help"]) == 0
    return re.findall(r"^[ │]*(?:-\w, )?(--[a-z][\w.-]*)", out.getvalue(), flags=re.MULTILINE)


def surface() -> str:
    """One line a verb and option, and a line a public name."""
    lines = [f"retoken {command} {option}" for command in commands() for option in options_of(command)]
    return "\n".join([*lines, *(f"retoken.{name}" for name in retoken.__all__)]) + "\n"


def test_the_outside_is_as_agreed() -> None:
    assert surface() == SNAPSHOT.read_text()


if __name__ == "__main__":
    sys.stdout.write(surface())
