"""What README and documentation print must work: Python blocks run, commands parse, links lead somewhere."""

import importlib
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from retoken.attach.families import FAMILIES
from retoken.cli.main import VERBS
from retoken.cli.options import parse
from retoken.testing import tiny_model

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of a language, without those that include a file."""
    found = [code for kind, code in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == language]
    return [code for code in found if "--8<--" not in code]


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) of every `retoken VERB ...` line in a bash block, continued lines joined."""
    for page in PAGES:
        for code in blocks(page, "bash"):
            for line in code.replace("\\\n", " ").splitlines():
                command = line.split(" #")[0].strip()
                command = re.sub(r"^torchrun .*-m retoken", "retoken", command)
                if command.startswith("retoken "):
                    yield page.name, command


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_every_printed_command_parses(page: str, command: str) -> None:
    _, verb, *words = shlex.split(command)
    where = VERBS[verb]
    kind = getattr(importlib.import_module(where.module), where.command)
    assert parse(kind, f"retoken {verb}", words) is not None


def test_the_pages_were_found() -> None:
    names = {page.name for page in PAGES}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "index.md", "data.md", "training.md"} <= names
    assert len(list(commands())) > 10


def _run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    exec(compile(code, "block", "exec"), {"__name__": "block"})


def test_the_readmes_python_runs(tmp_path: Path, tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    tiny_model("llama", vocab_size=300).save_pretrained(tmp_path / "path/to/model")
    for path in (tiny_store / "tokenizer").iterdir():
        shutil.copy(path, tmp_path / "path/to/model")
    _run(code, tmp_path, monkeypatch)
    assert (tmp_path / "with-tables" / "model.safetensors").is_file()


def test_the_python_of_data_and_training_runs(
    tmp_path: Path, tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_store, tmp_path / "data")
    pages = [ROOT / "docs" / name for name in ("data.md", "training.md")]
    code = "\n".join(block for page in pages for block in blocks(page, "python"))
    # The documented sizes are for real text.
    small = {"window=257": "window=17", "steps=200": "steps=2, batch_size=2, context_length=16"}
    for there, here in small.items():
        assert there in code
        code = code.replace(there, here)
    _run(code, tmp_path, monkeypatch)
    assert (tmp_path / "run" / "result.json").is_file()


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken


@pytest.mark.parametrize("family", FAMILIES)
def test_the_readme_names_every_family(family: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").lower()
    plain = re.sub(r"[^a-z0-9]", "", text)
    assert re.sub(r"[^a-z0-9]", "", family.removesuffix("_text")) in plain


def test_the_loop_of_one_s_own_trains_by_touched_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(blocks(ROOT / "docs" / "scale.md", "python")[0], tmp_path, monkeypatch)


def test_the_python_of_inference_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run("\n".join(blocks(ROOT / "docs" / "inference.md", "python")), tmp_path, monkeypatch)
    assert (tmp_path / "rows.safetensors").is_file()
