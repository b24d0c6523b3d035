"""docs/plan.md holds what docs/tables/plan.py works out."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plan_tables", ROOT / "docs" / "tables" / "plan.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_small_tables_are_the_pages(script: ModuleType) -> None:
    assert script.markdown(script.LADDER_HEAD, script.ladder_rows()) in PAGE
    assert script.markdown(script.LAW_HEAD, script.law_rows()) in PAGE


@pytest.mark.parametrize(
    ("variant", "name", "ranks"),
    [("ReToken", "dense-s", 512), ("MoRT (5, 3)", "a250m-t3b", 64), ("MoRT (5, 3)", "17b-a2b", 8)],
)
def test_rows_of_the_large_tables_are_the_pages(
    script: ModuleType, variant: str, name: str, ranks: int
) -> None:
    row = script.step_row(script.job_of(name, script.VARIANTS[variant], ranks))
    line = f"| {' | '.join((name, *row))} |"
    table = PAGE.split(f"<!-- {variant} -->")[1].split(f"<!-- end of {variant} -->")[0]
    assert line in table.splitlines()
    assert len(table.strip().splitlines()) == 2 + 7 * 4


def test_a_table_goes_between_its_marks_and_nowhere_else(script: ModuleType) -> None:
    page = "a\n\n<!-- x -->\n\nold\n\n<!-- end of x -->\n\nb"
    assert script.replaced(page, "x", "new") == page.replace("old", "new")
