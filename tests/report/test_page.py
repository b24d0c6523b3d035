"""The page as a file: nothing from elsewhere, no id twice, colours as variables, words from the numbers."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from retoken.compare.folder import CompareFolder, RunKey
from retoken.inspect import Inspection
from retoken.report import inspection
from retoken.report.page import render, write_report

Invented = Callable[..., CompareFolder]
Look = Callable[..., Inspection]
VOID = {"meta", "br", "link", "img", "hr", "input", "path", "use"}


class Reader(HTMLParser):
    """Ids, references and open elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.labels: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        self.loads += [str(found[name]) for name in ("src", "href", "xlink:href") if found.get(name)]
        if tag == "svg":
            self.labels.append(str(found.get("aria-label")))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(invented_once: CompareFolder) -> str:
    return render(invented_once.load())


@pytest.fixture(scope="module", params=["compare", "retoken", "mort", "bare"])
def any_page(request: pytest.FixtureRequest, invented_once: CompareFolder, invented_look: Look) -> str:
    """The page of a comparison, or of an inspection with and without losses."""
    if request.param == "compare":
        return render(invented_once.load())
    bare = request.param == "bare"
    found = invented_look("retoken" if bare else request.param, measured=not bare)
    run = None if bare else invented_once.run(RunKey(request.param, 0))
    return inspection.render(found, run, "retoken inspect invented")


def test_it_is_one_file_that_loads_nothing(any_page: str) -> None:
    page = any_page
    read = Reader(page)
    assert read.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    assert all(target.startswith("#") for target in read.loads)
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    namespaces = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= namespaces


def test_ids_are_unique_and_references_resolve(any_page: str) -> None:
    page = any_page
    read = Reader(page)
    assert len(read.ids) == len(set(read.ids))
    used = {target[1:] for target in [*read.loads, *re.findall(r"url\(([^)]*)\)", page)]}
    assert used and used <= set(read.ids)


def test_every_colour_is_a_variable_that_both_themes_define(any_page: str) -> None:
    page = any_page
    style, body = page.split("</style>", 1)
    assert not re.findall(r"#[0-9a-f]{6}\b", body)
    used = set(re.findall(r"var\(--([\w-]+)\)", page)) - {"c", "p"}
    themes = re.findall(r"--page: [^}]*", style)
    assert len(themes) == 3  # light, dark, print
    fonts = {"serif", "sans", "mono"}
    for theme in themes:
        assert used - fonts <= set(re.findall(r"--([\w-]+):", theme))


def test_every_picture_says_what_it_shows(any_page: str) -> None:
    labels = Reader(any_page).labels
    assert len(labels) == any_page.count("<svg ") >= (15 if "retoken compare" in any_page else 4)
    assert all(len(label) > 40 for label in labels)
    assert len(set(labels)) == len(labels)


def test_an_inspection_shows_what_was_found_and_no_more(invented_look: Look) -> None:
    mort, retoken, bare = (
        inspection.render(invented_look(variant, measured=measured), None, "retoken inspect x")
        for variant, measured in (("mort", True), ("retoken", True), ("retoken", False))
    )
    assert "loses 2.25 nats per token; without those of layer 4 alone 0.30" in mort
    assert "Rank correlation 0.21 to first order, 0.93 along the path" in mort
    assert "the rows of 31 tokens (5.2 %) may go" in mort and "17 of 600 tokens" in mort
    assert 'id="load"' in mort and "without 1/√(2N)" in mort
    assert "routed apart, by layer: between 0.02 and 0.4" in mort and "routed apart" not in retoken
    assert 'id="load"' not in retoken and 'id="matter"' in retoken
    assert 'id="matter"' not in bare and 'id="near"' in bare and "no loss was measured" in bare
    assert "&lt;i0&gt;" in mort and "<i0>" not in mort  # a token's text is not markup


FIGURES = (
    *("Held-out loss against tokens", "Held-out loss against FLOPs", "Held-out loss against seconds"),
    *("Mean scale of ReToken by layer", "Mean scale of MoRT by layer", "Hidden-state std by depth"),
    *("share of choices by layer and modulator", "Gained most", "most likely token each time"),
    *("Tokens<br>per second", "Peak<br>memory", "To repeat it", "What this cannot show"),
)


@pytest.mark.parametrize("figure", FIGURES)
def test_what_a_reader_of_the_paper_looks_for_is_there(page: str, figure: str) -> None:
    assert figure in page


def test_the_headline_follows_the_numbers(invented: Invented) -> None:
    def headline(retoken: float, mort: float, seeds: tuple[int, ...] = (0, 1, 2)) -> str:
        folder = invented(seeds=seeds, final={"baseline": 4.9, "retoken": retoken, "mort": mort})
        found = re.search(r"<h1>(.*?)</h1>", render(folder.load()))
        assert found is not None
        for path in sorted(folder.path.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        return found[1]

    assert headline(4.7, 4.6) == "ReToken and MoRT lowered the held-out loss"
    assert headline(5.2, 4.6) == "ReToken raised the held-out loss; MoRT lowered the held-out loss"
    assert "ReToken made no difference" in headline(4.9, 4.6) or "spread can settle" in headline(4.9, 4.6)
    assert headline(4.7, 4.6, seeds=(0,)).endswith("but one seed is no verdict")


def test_an_interrupted_job_has_a_page(invented: Invented) -> None:
    page = render(invented(done=[("baseline", 0), ("retoken", 0), ("mort", 0), ("baseline", 1)]).load())
    assert "4 of 6 runs have finished" in page
    assert "retoken-seed1, mort-seed1" in page
    Reader(page)


def test_no_run_at_all_has_a_page(invented: Invented) -> None:
    page = render(invented(done=[]).load())
    assert "0 of 6 runs have finished" in page
    assert "No variant has finished beside the baseline yet" in page
    assert "<svg" not in page


@pytest.mark.parametrize("variants", [("baseline",), ("retoken", "mort"), ("baseline", "mort")])
def test_any_choice_of_variants_has_a_page(invented: Invented, variants: tuple[str, ...]) -> None:
    page = render(invented(variants=variants).load())
    assert Reader(page).open == []
    assert ("lowered the held-out loss" in page) == (variants == ("baseline", "mort"))


def test_a_run_without_extras_has_a_page(invented: Invented) -> None:
    folder = invented()
    for key in folder.planned():
        for name in ("token_loss.safetensors", "samples.json", "model/tokenizer.json"):
            (folder.run(key) / name).unlink()
        metrics = folder.run(key) / "metrics.jsonl"
        lines = [line for line in metrics.read_text().splitlines() if '"kind": "train"' in line]
        metrics.write_text("\n".join(lines))
    page = render(folder.load())
    assert "Training loss against tokens" in page
    for absent in (
        "Held-out loss against",
        "Mean scale",
        "Hidden-state std",
        "Which tokens",
        "Text they wrote",
    ):
        assert absent not in page


def test_text_from_models_and_callers_is_escaped(invented: Invented) -> None:
    folder = invented()
    path = folder.run(folder.planned()[0]) / "samples.json"
    found = json.loads(path.read_text())
    found["samples"][0] |= {"prompt": "<script>alert(1)</script>", "greedy": '"><img src=x>'}
    path.write_text(json.dumps(found))
    manifest = json.loads(folder.manifest.read_text())
    folder.manifest.write_text(json.dumps(manifest | {"command": "retoken <b>"}))
    read = Reader(render(folder.load()))
    assert "script" not in read.tags and "img" not in read.tags


def test_the_same_runs_give_the_same_page(invented: Invented) -> None:
    folder = invented()
    assert render(folder.load()) == render(folder.load())


def test_costs_are_those_of_the_runs(page: str) -> None:
    assert "ReToken stores 2.38 times the baseline" in page
    assert "trains at 0.96 times" in page
    assert "the tables bring that to 2.4 times for ReToken and 7.9 times for MoRT" in page
    assert "every run read it 1.6 times" in page
    assert "Two seeds were run" in page


def test_a_failed_write_leaves_the_old_page(invented: Invented, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = invented()
    write_report(folder, folder.load())
    before = folder.report.read_bytes()
    monkeypatch.setattr("retoken.report.page.render", lambda comparison: "half a page\udcff")
    with pytest.raises(UnicodeEncodeError):
        write_report(folder, folder.load())
    assert folder.report.read_bytes() == before
    assert not list(folder.path.glob(".report*"))
