"""The bench of the exchange: crews that take turns, what is compared, bytes beside the planned ones."""

import csv
import json
import statistics
import sys
import textwrap
import time

import pytest

from retoken.bench import alone, crew
from retoken.bench.alone import OURS, PEERS, Size
from retoken.bench.crew import Crew
from retoken.bench.exchange import Measured
from retoken.bench.ladder import EXCHANGES, RUNGS
from retoken.bench.requests import Requests
from retoken.bench.turns import Turn, Turns, take
from retoken.cli.main import main
from retoken.data.tokens import TokenStore
from retoken.errors import ConfigError, TrainingError
from retoken.plan import fit

SMALL = ["bench", "exchange", "demo", "--ranks", "2", "--repeats", "2", "--steps", "1"]


def script(folder, body):
    """A rank that reads turns; `body` answers `asked`."""
    path = folder / "rank.py"
    lines = [
        "import json, os, sys, time",
        "rank, options = int(os.environ['RANK']), json.loads(sys.argv[1])",
        "print('noise of a library')",
        "print(json.dumps({'ready': {'torch': '1', 'torchrec': '2', 'seen': options}}), flush=True)",
        "for line in sys.stdin:",
        "    asked = json.loads(line)",
        textwrap.indent(textwrap.dedent(body), "    "),
    ]
    path.write_text("\n".join(lines))
    return [sys.executable, str(path)]


def test_every_rank_of_a_crew_takes_a_turn(tmp_path):
    answer = "print(json.dumps({'rank': rank, 'got': asked, 'world': os.environ['WORLD_SIZE']}), flush=True)"
    with Crew(script(tmp_path, answer), 3, {"size": 7}) as found:
        assert found.failed is None and found.about["seen"] == {"size": 7}
        for steps in (1, 2):
            got = {"case": "a", "steps": steps}
            want = [{"rank": rank, "got": got, "world": "3"} for rank in range(3)]
            assert found.turn(case="a", steps=steps) == want


def test_a_rank_that_fails_or_ends_is_told_at_once(tmp_path):
    body = """
        if rank == 1 and asked["case"] == "fail":
            print(json.dumps({"failed": "no such case"}), flush=True)
        elif rank == 1:
            sys.exit("the last words")
        else:
            time.sleep(60)
    """
    for case, said in (("fail", "no such case"), ("end", "rank 1 of the bench ended: the last words")):
        started = time.monotonic()
        with Crew(script(tmp_path, body), 2, {}) as found, pytest.raises(TrainingError, match=said):
            found.turn(case=case, steps=1)
        assert time.monotonic() - started < 50


def test_a_rank_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    with Crew(script(tmp_path, "time.sleep(60)"), 1, {}) as found:
        monkeypatch.setattr(crew, "PATIENCE", 0.1)
        with pytest.raises(TrainingError, match="more than 0 seconds"):
            found.turn(case="a", steps=1)


def test_a_crew_that_cannot_start_says_why(tmp_path):
    with Crew([sys.executable, "-c", "raise SystemExit('no torchrec here')"], 2, {}) as found:
        assert found.failed is not None and found.failed.endswith("no torchrec here")


def turn(case, repeat, seconds, cpu):
    return Turn(case=case, repeat=repeat, steps=2, seconds=seconds, cpu=cpu, sent=0.0, load=0.5)


def test_speeds_are_ratios_within_a_repeat():
    found = Turns(
        [
            turn("base", 0, 1.0, 4.0),
            turn("a", 0, 2.0, 4.0),
            turn("a", 1, 5.0, 2.0),
            turn("base", 1, 10.0, 4.0),
        ]
    )
    assert found.speed("a", "base").median == pytest.approx((0.5 + 2.0) / 2)
    assert found.speed("a", "base", cpu=True).median == pytest.approx((1.0 + 2.0) / 2)


class Worker:
    """A crew that notes its turns; each takes as long as its name says."""

    def __init__(self):
        self.called = []

    def turn(self, *, case, steps):
        self.called.append(case)
        return [{"seconds": 3.0 * steps, "cpu": 1.0, "sent": 5.0}, {"seconds": 2.0 * steps, "cpu": 2.0}]


def test_cases_take_turns_forth_and_back():
    worker = Worker()
    found = take({"x": (worker, "a"), "y": (worker, "b")}, steps=2, repeats=3)
    assert worker.called == ["a", "b", *"abbaab"]
    assert found.seconds("y") == [3.0] * 3 and found.cpu("y") == [1.5] * 3
    assert {(each.case, each.repeat, each.sent) for each in found.turns} == {
        (case, repeat, 5.0) for case in "xy" for repeat in range(3)
    }


def test_ranks_ask_for_ids_of_the_corpus_and_all_modulators(tiny_store):
    store = TokenStore.open(tiny_store)
    drawn = Requests.draw(
        store, ranks=3, batches=2, tokens=32, context_length=16, layers=2, modulators=5, top_k=3
    )
    assert drawn.ids.shape == (3, 2, 32) and drawn.chosen.shape == (3, 2, 2, 32, 3)
    assert len({drawn.ids[rank, part].tobytes() for rank in range(3) for part in range(2)}) == 6
    assert drawn.ids.max() < store.manifest.vocab_size
    rows = drawn.chosen.reshape(-1, 3)
    assert all(len(set(row)) == 3 for row in rows.tolist())
    assert set(rows.flatten().tolist()) == set(range(5))


@pytest.fixture
def fake_torchrec(tmp_path, monkeypatch):
    """A script in TorchRec's place whose passes take half a second."""
    body = "print(json.dumps({'seconds': 0.5 * asked['steps'], 'cpu': 0.25 * asked['steps']}), flush=True)"
    monkeypatch.setattr(alone, "TORCHREC_SCRIPT", script(tmp_path, body)[1])


def test_alone_beside_a_peer(tiny_store, fake_torchrec, tmp_path):
    from pathlib import Path

    size = Size(tokens=32, context_length=16, layers=2, width=8)
    store = TokenStore.open(tiny_store)
    found = alone.measure(store, size, ranks=2, steps=1, repeats=2, peer_python=Path(sys.executable))
    assert [each.name for each in found.fetchings] == [*OURS, *(f"TorchRec {name}" for name in PEERS)]
    assert found.peer.startswith("torchrec 2 on torch 1")
    for each in found.fetchings:
        if each.name.startswith("TorchRec"):
            assert each.step_seconds.median == 0.5 and each.sent is None
            assert each.rows_per_second.median == 2 * 32 * 2 / 0.5
            assert (each.over_peer is None) == each.name.endswith("unique")
        else:
            assert each.sent == each.planned and each.sent > 0, each.name
            speeds = [0.5 / seconds for seconds in found.turns.seconds(each.name)]
            assert each.over_peer.median == pytest.approx(statistics.median(speeds))
    path = tmp_path / "turns.csv"
    Measured(alone=found, ladders=[]).write_turns(path)
    lines = list(csv.DictReader(path.open()))
    assert len(lines) == 2 * len(found.fetchings) and {line["part"] for line in lines} == {"alone"}


def test_alone_without_its_peer_says_how_to_get_it(tiny_store, monkeypatch, tmp_path):
    monkeypatch.setattr(alone, "OURS", ("retoken V early",))
    size = Size(tokens=16, context_length=16, layers=1, width=8)
    found = alone.measure(TokenStore.open(tiny_store), size, ranks=2, steps=1, repeats=2)
    assert "no --peer-python was given" in found.peer and "pip install" in found.peer
    assert [each.over_peer for each in found.fetchings] == [None]
    with pytest.raises(ConfigError, match="peer python is"):
        alone.measure(TokenStore.open(tiny_store), size, ranks=2, peer_python=tmp_path / "none")
    with pytest.raises(ConfigError, match="a multiple of 16"):
        alone.measure(TokenStore.open(tiny_store), Size(tokens=17, context_length=16, layers=1, width=8))


def test_the_ladder_by_the_command_line(tiny_store, tmp_path, capsys):
    """Every rung is timed, sends what is planned, and leaves lines to fit the plan's time model to."""
    steps, turns = tmp_path / "steps.csv", tmp_path / "turns.csv"
    words = [*SMALL, "--parts", "ladder", "--variants", "mort", "retoken", "--data", str(tiny_store)]
    words += ["--batch-size", "4", "--context-length", "16", "--json", "--held-out", "demo"]
    assert main([*words, "--csv", str(steps), "--turns-csv", str(turns)]) == 0
    found = json.loads(capsys.readouterr().out)
    mort, retoken = found["ladders"]
    assert found["alone"] is None and mort["tokens_per_step"] == 64
    assert [rung["name"] for rung in mort["rungs"]] == list(RUNGS)
    assert [rung["name"] for rung in retoken["rungs"]] == ["no tables", "naive", "sharded", "early"]
    for ladder in (mort, retoken):
        for rung in ladder["rungs"]:
            assert rung["exact"], rung["name"]
            if rung["name"] in EXCHANGES:
                assert rung["sent"] == rung["planned"] > 0
                assert rung["expected"] == pytest.approx(rung["sent"], rel=0.4)
    sent = {rung["name"]: rung["sent"] for rung in mort["rungs"]}
    assert sent["sharded"] > sent["deduplicated"] and sent["naive"] is None
    # a ring moves 2 (N - 1) / N of the gradient: with two ranks once its bytes
    assert mort["rungs"][1]["planned"] == 4 * mort["table_params"]
    lines = fit.read(steps)
    assert len(lines) == len(RUNGS) + 4 and all(line.held_out for line in lines)
    assert lines[0].name == "demo mort, 2 ranks, 64 tokens: no tables" and lines[0].work.memory_bytes == 0
    assert lines[1].work.backward_bytes > lines[0].work.backward_bytes + 4 * mort["table_params"]
    assert len(list(csv.DictReader(turns.open()))) == 2 * len(lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ranks", "1"], "--ranks is 1; accepted: from 2"),
        (["--repeats", "1"], "--repeats is 1; accepted: from 2"),
        (["--width", "0"], "--width is 0; accepted: from 1"),
        (["--held-out", "cpu-s"], "--held-out has cpu-s; accepted: of demo"),
        (["--parts", "ladder", "--batch-size", "5"], "ranks is 2 with a batch of 5"),
        (["--parts", "alone", "--tokens", "100", "--context-length", "64"], "accepted: a multiple of 64"),
    ],
)
def test_refusals_are_one_line(words, said, tiny_store, capsys):
    assert main([*SMALL, *words, "--data", str(tiny_store)]) == 2
    assert said in capsys.readouterr().err
