"""docs/paper_map.md: every name in it exists, and every equation, figure and table of the paper is in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
REFERENCES = sorted(set(re.findall(r"`([^`\s]+\.py):([\w.]+)`", TEXT)))
NOT_BUILT = ("Not in this release", "nothing to build")
ROWS = {
    cells[0]: cells[1:]
    for cells in ([c.strip() for c in line.strip("|").split("|")] for line in TEXT.splitlines())
}


def members(body: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
    """{name: statements inside it} of what a module or class defines."""
    found: dict[str, list[ast.stmt]] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node.body
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = []
        elif isinstance(node, ast.Assign):
            found.update({target.id: [] for target in node.targets if isinstance(target, ast.Name)})
    return found


def inherited(module: list[ast.stmt], name: str) -> dict[str, list[ast.stmt]]:
    """The members of a class, its bases in the same module included."""
    found: dict[str, list[ast.stmt]] = {}
    for node in module:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for base in node.bases:
                found |= inherited(module, base.id) if isinstance(base, ast.Name) else {}
            found |= members(node.body)
    return found


def exists(file: str, name: str) -> bool:
    """Whether `name`, or `Class.member`, is defined in `file`; nothing is imported."""
    path = ROOT / file
    if not path.is_file():
        return False
    module = ast.parse(path.read_text(encoding="utf-8")).body
    first, *rest = name.split(".")
    if not rest:
        return first in members(module)
    return len(rest) == 1 and rest[0] in inherited(module, first)


@pytest.mark.parametrize(("file", "name"), REFERENCES, ids=lambda value: str(value))
def test_every_name_exists(file: str, name: str) -> None:
    assert exists(file, name)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("src/retoken/ops/naive.py", "no_such_function"),
        ("src/retoken/ops/no_such_file.py", "retoken_gate"),
        ("src/retoken/nn/mort.py", "MoRT.no_such_method"),
        ("src/retoken/nn/mort.py", "NoSuchClass.forward"),
    ],
)
def test_a_name_that_is_gone_is_noticed(file: str, name: str) -> None:
    assert not exists(file, name)


@pytest.mark.parametrize(("kind", "last"), [("Eq.", 21), ("Figure", 9), ("Table", 9)])
def test_every_number_of_the_paper_is_there_once_and_answered(kind: str, last: int) -> None:
    numbers = [int(n) for n in re.findall(rf"^\| {re.escape(kind)} (\d+) \|", TEXT, flags=re.MULTILINE)]
    assert numbers == list(range(1, last + 1))
    for number in numbers:
        said = " ".join(ROWS[f"{kind} {number}"])
        assert ".py:" in said or "the same" in said or any(words in said for words in NOT_BUILT), number


def test_references_are_written_so_that_they_are_checked() -> None:
    """A path in another form would slip through the test above."""
    assert len(REFERENCES) > 30
    in_code = re.findall(r"`([^`]*\.py[^`]*)`", TEXT)
    assert [found for found in in_code if not re.fullmatch(r"\S+\.py(:[\w.]+)?", found)] == []


def test_every_naive_equation_is_mapped_to_its_number() -> None:
    """The other direction: what calls itself an equation in its docstring is in that equation's row."""
    module = ast.parse((ROOT / "src/retoken/ops/naive.py").read_text(encoding="utf-8"))
    functions = {
        node.name: ast.get_docstring(node) or "" for node in module.body if isinstance(node, ast.FunctionDef)
    }
    numbered = {name: re.search(r"\(Eq\. (\d+)\)", text.split("\n\n")[0]) for name, text in functions.items()}
    assert {int(found[1]) for found in numbered.values() if found} == {1, 2, 3, 4, 5, 6, 8, 16, 21}
    for name, found in numbered.items():
        row = f"Eq. {found[1]}" if found else None
        where = " ".join(ROWS[row]) if row else TEXT
        assert f"`src/retoken/ops/naive.py:{name}`" in where, name
