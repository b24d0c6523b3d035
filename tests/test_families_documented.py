"""The table of families in docs/attach.md is the package's own."""

import re
from pathlib import Path

from retoken.attach import FAMILIES

PAGE = Path(__file__).parents[1] / "docs" / "attach.md"


def test_the_documented_families_are_the_known_ones():
    rows = re.findall(r"^\| (\w+) \| `([\w.]+)` \| `([\w.]+)` \| `([\w.]+)` \|$", PAGE.read_text(), re.M)
    documented = {name: {"layers": a, "mlp": b, "increment": c} for name, a, b, c in rows}
    assert documented == {name: family.to_dict() for name, family in FAMILIES.items()}
