"""Small corpora made here, and a cache folder of the tests' own: nothing is fetched or left behind."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from retoken.data.config import PrepareConfig
from retoken.data.manifest import Manifest
from retoken.data.prepare import prepare
from retoken.data.progress import Reporter

WORDS = """
the of and to in is that it was for on are with as his they be at one have this from or had by hot
word but what some we can out other were all there when up use your how said an each she which their
time if will way about many then them write would like so these her long make thing see him two has
look more day could go come did number sound no most people my over know water than call first who
may down side been now find any new work part
""".split()


def made_up(seed: int, words: int = 120) -> str:
    """Repeatable prose of paragraphs, with letters outside ASCII in it."""
    draw = random.Random(seed)
    text = " ".join(draw.choice(WORDS) + draw.choice(["", "", "", ",", "é"]) for _ in range(words))
    return f"{text.capitalize()}.\n\nAs the naïve reader {seed} said: it was, in short, enough — and no more."


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("RETOKEN_CACHE", str(folder))
    return folder


@pytest.fixture
def documents() -> list[str]:
    return [made_up(seed) for seed in range(240)]


@pytest.fixture
def jsonl(tmp_path: Path, documents: list[str]) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return path


@pytest.fixture
def make(tmp_path: Path, jsonl: Path) -> Callable[..., Manifest]:
    """Prepares `jsonl`, or another corpus, with small settings."""

    def run(out: str = "out", progress: Reporter | None = None, **options) -> Manifest:
        small = {"corpus": str(jsonl), "vocab_size": 400, "val_fraction": 0.2, "workers": 1}
        return prepare(PrepareConfig(out=tmp_path / out, **{**small, **options}), progress)

    return run


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder and its bytes."""

    def read(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    return read
