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

SNAPSHOT = Path(__file__).with_name("surface.txt")


def options_of(verb: str) -> list[str]:
    """The long options that a verb's help lists, in its order."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([verb, "--help"]) == 0
    return re.findall(r"^[ │]*(?:-\w, )?(--[a-z][\w.-]*)", out.getvalue(), flags=re.MULTILINE)


def surface() -> str:
    """One line a verb and option, and a line a public name."""
    lines = [f"retoken {verb} {option}" for verb in VERBS for option in options_of(verb)]
    return "\n".join([*lines, *(f"retoken.{name}" for name in retoken.__all__)]) + "\n"


def test_the_outside_is_as_agreed() -> None:
    assert surface() == SNAPSHOT.read_text()


if __name__ == "__main__":
    sys.stdout.write(surface())
