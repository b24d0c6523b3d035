"""The bench of lookups: ids, what takes part, that wrong results are caught, its arithmetic, its peers."""

import csv
import dataclasses
import json
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from retoken.bench import fbgemm_lookup, lookup, lookup_cases, lookup_gemma, lookup_peer, lookup_turns
from retoken.bench.lookup_ids import Stream, fresh, stream, text
from retoken.bench.lookup_room import LAYERS, Contender, Setting, States, Table
from retoken.bench.lookup_turns import Case, LookupTurn
from retoken.cli.bench_lookup import losses
from retoken.cli.main import main
from retoken.errors import RetokenError

V, D, T = 50, 24, 6
SMALL = ["bench", "lookup", "--vocab-size", "50", "--width", "24", "--tokens", "1", "6", "--repeats", "2"]
QUICK = [*SMALL, "--no-compile"]
SETTINGS = [
    Setting(operation=operation, rows=rows, experts=experts, top_k=top_k, vocab_size=V, width=D)
    for operation, (experts, top_k), kinds in (
        ("gather", (1, 1), ("float32", "bfloat16")),
        ("gate", (1, 1), ("float32", "bfloat16", "int8", "float8_e4m3")),
        ("folded", (1, 1), ("float32", "bfloat16", "int8", "float8_e4m3")),
        ("mix", (5, 3), ("float32", "bfloat16", "int8", "float8_e4m3")),
        ("route", (4, 2), ("float32", "bfloat16")),
    )
    for rows in kinds
]


@pytest.fixture(autouse=True)
def small_streams(monkeypatch):
    monkeypatch.setattr(lookup_turns, "STREAM", 64)
    lookup_turns.streams.cache_clear()
    with torch.no_grad():
        yield
    lookup_turns.streams.cache_clear()


@pytest.fixture
def fake_fbgemm(tmp_path, monkeypatch):
    """A script in FBGEMM's place that answers every turn with half a second."""
    path = tmp_path / "peer.py"
    path.write_text(
        textwrap.dedent("""
            import json, sys
            options = json.loads(sys.stdin.readline())
            assert options["operation"] != "mix" or len(options["chosen"]["6"][0]) == 3
            print(json.dumps({"ready": {"torch": "1", "fbgemm_gpu": "2"}}), flush=True)
            for line in sys.stdin:
                tokens, kind = line.split()
                assert int(tokens) in options["tokens"] and len(options["ids"][kind]) >= 50
                print(json.dumps({"seconds": 0.5}), flush=True)
        """)
    )
    monkeypatch.setattr(lookup_peer, "SCRIPT", path)


def test_fresh_ids_come_again_only_after_all_others():
    ids = fresh(V, 120)
    assert len(ids) == 150 and all(len(part.unique()) == V for part in ids.split(V))
    calls = Stream(fresh(V, 8)).take(7, 8)
    assert len(torch.cat(calls[:6]).unique()) == 48 and torch.equal(calls[6], calls[0])


def test_text_has_few_tokens_often():
    ids = text(1000, 20000)
    often = ids.bincount(minlength=1000).sort(descending=True).values
    assert ids.min() >= 0 and ids.max() < 1000
    first = (1 / 3.7) / sum(1 / (rank + 2.7) for rank in range(1, 1001))
    assert often[0].item() / 20000 == pytest.approx(first, rel=0.1)
    assert stream("text", 1000, 100).distinct(100) < 90 < stream("fresh", 1000, 100).distinct(100) == 100


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.title)
def test_all_contenders_give_what_the_equations_give(setting):
    table, states = Table(setting), States(setting, T)
    found = lookup_cases.contenders(table, states, compiled=False)
    assert found[0].name == "fused" and found[0].does == "whole" and len(found) >= 2
    lookup.check(found, lookup_cases.wanted(table, states), torch.tensor([3, 3, 49, 0, 7, 1]), setting)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.title)
def test_a_wrong_contender_is_caught(setting):
    table, states = Table(setting), States(setting, T)
    wanted = lookup_cases.wanted(table, states)
    right = lookup_cases.contenders(table, states, compiled=False)[1]

    def wrong(ids):
        found = right.call(ids)
        return found._replace(weights_TK=found.weights_TK.flip(0)) if setting.token_bytes == 0 else -found

    with pytest.raises(RetokenError, match="its own does not give what the equations give"):
        lookup.check([Contender(name="its own", call=wrong)], wanted, torch.arange(T), setting)


def test_one_wrong_token_is_caught_and_another_shape():
    setting = SETTINGS[0]
    table, states = Table(setting), States(setting, T)
    wanted = lookup_cases.wanted(table, states)
    for wrong in (
        lambda ids: table.memory[ids.clone().index_fill_(0, torch.tensor(2), 9)],
        lambda ids: table.memory,
    ):
        with pytest.raises(RetokenError):
            lookup.check([Contender(name="x", call=wrong)], wanted, torch.arange(T), setting)


@pytest.mark.parametrize("rows", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3)])
def test_gemma_s_modules_do_what_is_said(rows, shape):
    setting = Setting(operation="gemma", rows=rows, experts=shape[0], top_k=shape[1], vocab_size=V, width=D)
    table, states, gemma = Table(setting), States(setting, T), lookup_gemma.model(setting, layers=2)
    lookup_gemma.fill(gemma)
    assert gemma.embed_tokens_per_layer.weight.shape == (V, 2 * lookup_gemma.PLE)
    found = lookup_gemma.contenders(table, states, gemma)
    ours, theirs, projected = found
    lookup.check(found, lookup_gemma.wanted(table, states, gemma), torch.arange(T), setting)
    assert ours.layers == LAYERS and theirs.layers == projected.layers == 2
    assert not torch.equal(theirs.call(torch.arange(T)), projected.call(torch.arange(T)))


def test_compile_takes_what_is_eager_and_nothing_else(monkeypatch):
    taken = []
    monkeypatch.setattr(torch, "compile", lambda call, dynamic: taken.append(call) or call)
    for setting in SETTINGS:
        found = lookup_cases.contenders(Table(setting), States(setting, T), compiled=True)
        names = [each.name for each in found]
        assert ("torch.compile" in names) == ("naive" in names) == (setting.operation != "gather")
    assert len(taken) == sum(setting.operation != "gather" for setting in SETTINGS)


def test_ratios_and_bytes_by_hand():
    setting = dataclasses.replace(SETTINGS[5], operation="mix", experts=5, top_k=3, rows="int8")
    assert setting.token_bytes == 3 * (D + 4)
    theirs = Contender(name="theirs", call=len)
    cases = [
        Case(contender=each, turn=lambda: 0.0, row_bytes=100.0)
        for each in (Contender(name="fused", call=len), theirs, Contender(name="read", call=len))
    ]
    seconds = {"fused": 2.0, "theirs": 3.0, "read": 0.5}
    turns = [
        LookupTurn(
            setting=setting.title, tokens=T, ids="fresh", contender=name, repeat=repeat, seconds=s,
            row_bytes=100.0, load=0.0,
        )
        for repeat in range(2)
        for name, s in seconds.items()
    ]  # fmt: skip
    ours, other = lookup.summary(setting, cases, turns)
    assert ours.ours_over_it.median == 1 and other.ours_over_it.median == 1.5
    assert ours.microseconds.median == 2e6 and ours.rows_per_second == T * 3 / 2
    assert ours.bound_microseconds == pytest.approx(0.5e6) and ours.row_bytes == 100
    assert other.of_bandwidth is not None and other.of_bandwidth.median == pytest.approx(0.5 / 3)
    alone = dataclasses.replace(cases[1], contender=dataclasses.replace(theirs, token_bytes=9))
    assert lookup.summary(setting, [cases[0], alone], turns)[1].rows_per_second == T / 3
    assert losses([ours, other]) == ["the fused kernels lost to nothing that does the same"]
    slower = dataclasses.replace(other, ours_over_it=lookup.Spread(median=0.5, low=0.4, high=0.6))
    assert losses([slower]) == ["lost to theirs: mix, E=5 K=3, int8, T=6, fresh ids, 0.50 (0.40 to 0.60)"]


def test_turns_go_forth_and_back():
    order = []
    cases = [
        Case(
            contender=Contender(name=name, call=len),
            turn=lambda name=name: order.append(name) or 1.0,
            row_bytes=1,
        )
        for name in "ab"
    ]
    found = lookup_turns.in_turns(cases, "x", (1, "fresh"), 2)
    assert "".join(order) == "ababba" and [turn.repeat for turn in found] == [0, 0, 1, 1]


def test_command_prints_one_json_object_and_writes_all_turns(tmp_path, capsys):
    path = tmp_path / "turns.csv"
    parts = ["--parts", "gather", "gate", "mix", "route", "--mort", "5,3", "--rows", "float32", "int8"]
    assert main([*QUICK, *parts, "--json", "--csv", str(path)]) == 0
    found = json.loads(capsys.readouterr().out)
    rates = found["rates"]
    wanted = {
        ("gather", "float32"),
        ("gate", "float32"),
        ("gate", "int8"),
        ("mix", "float32"),
        ("mix", "int8"),
    }
    done = {(rate["setting"]["operation"], rate["setting"]["rows"]) for rate in rates}
    assert done == wanted | {("route", "float32")}
    assert {(rate["tokens"], rate["ids"]) for rate in rates if rate["row_bytes"]} == {
        (count, kind) for count in (1, 6) for kind in ("fresh", "text")
    }
    assert found["peers"] == ["FBGEMM did not run: no --peer-python was given"]
    with path.open() as file:
        turns = list(csv.DictReader(file))
    groups = {(turn["setting"], turn["tokens"], turn["ids"]) for turn in turns}
    assert len(turns) == 2 * (len(rates) + 2 * len(groups)) and all(
        float(turn["seconds"]) > 0 for turn in turns
    )


def test_the_table_names_settings_and_contenders(capsys):
    assert main([*QUICK, "--parts", "gemma", "--rows", "bfloat16", "--mort", "4,2", "--ids", "fresh"]) == 0
    said = capsys.readouterr().out
    for words in (
        "gemma, bfloat16",
        "gemma, E=4 K=2, bfloat16",
        "Gemma 3n PLE",
        "memory bandwidth",
        "machine",
    ):
        assert words in said


def test_a_peer_s_turns_are_its_own_seconds(fake_fbgemm, capsys):
    parts = ["--parts", "gather", "mix", "--mort", "5,3"]
    assert main([*QUICK, *parts, "--json", "--peer-python", sys.executable]) == 0
    found = json.loads(capsys.readouterr().out)
    theirs = [rate for rate in found["rates"] if rate["name"].startswith("FBGEMM")]
    assert len(theirs) == 4 * (2 + 3) and all(rate["microseconds"]["median"] == 5e5 for rate in theirs)
    assert {rate["does"] for rate in theirs} == {"whole", "mixture"}
    assert found["peers"] == ["fbgemm_gpu 2 on torch 1"]


def test_a_peer_that_cannot_run_is_named_and_the_rest_is_measured(capsys):
    """This Python has no fbgemm."""
    assert main([*QUICK, "--parts", "gather", "--peer-python", sys.executable]) == 0
    said = capsys.readouterr().out
    assert "F.embedding" in said and "FBGEMM did not run under" in said and "ModuleNotFoundError" in said


@pytest.mark.parametrize("operation", ["gather", "mix"])
def test_fbgemm_s_script_checks_its_results(operation):
    """With a table that does what FBGEMM's does, in torch."""
    experts, top_k = (5, 3) if operation == "mix" else (1, 1)
    setting = Setting(
        operation=operation, rows="float32", experts=experts, top_k=top_k, vocab_size=V, width=D
    )
    options = json.loads(json.dumps(lookup_peer.options(setting, [T], ["fresh"])))
    rows = torch.randn(V * experts, D)

    def table(index, offsets, weights=None):
        found = rows[index.long()]
        if weights is None:
            return found
        return (found * weights.unsqueeze(-1)).view(len(offsets) - 1, -1, D).sum(1)

    fbgemm_lookup.check(options, table, rows, T)
    assert fbgemm_lookup.Turns(options, table, "fresh", T).turn() > 0
    with pytest.raises(AssertionError):
        fbgemm_lookup.check(options, lambda *given: 2 * table(*given), rows, T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--width", "0"], "--width is 0; accepted: from 1"),
        (["--threads", "0"], "--threads is 0; accepted: from 1"),
        (["--repeats", "1"], "--repeats is 1; accepted: from 2"),
        (["--tokens", "0"], "--tokens is [0]; accepted: one or more, from 1"),
        (["--mort", "3,5"], "--mort has '3,5'; accepted: E,K"),
        (["--mort", "five"], "--mort has 'five'; accepted: E,K"),
        (["--ids"], "--ids is empty"),
        (["--csv", str(Path("nowhere") / "x.csv")], "whose folder does not exist"),
    ],
)
def test_bad_options_are_one_line_and_code_2(options, message, capsys):
    assert main([*SMALL, *options]) == 2
    assert message in capsys.readouterr().err
