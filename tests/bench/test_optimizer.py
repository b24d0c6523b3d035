"""The bench of row updates: its arithmetic, what it times, and peers that cannot run."""

import json
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from retoken.bench import optimizer
from retoken.bench.peer import PeerProcess
from retoken.bench.updates import ADDITION, OURS, PEERS, STREAMS, Work, touched_rows
from retoken.cli.main import main
from retoken.errors import ConfigError

SMALL = [
    "bench",
    "optimizer",
    "--vocab-sizes",
    "40",
    "131",
    "--touched",
    "7",
    "--width",
    "33",
    "--repeats",
    "2",
]


@pytest.fixture
def fake_fbgemm(tmp_path, monkeypatch):
    """A script in FBGEMM's place that answers every turn with half a second."""
    path = tmp_path / "peer.py"
    path.write_text(
        textwrap.dedent("""
            import json, sys
            print("noise of a library")
            options = json.loads(sys.stdin.readline())
            names = [f"{kind} {vocab}" for vocab, _ in options["ids"] for kind in options["kinds"]]
            print(json.dumps({"ready": {"torch": "1", "fbgemm_gpu": "2"}}), flush=True)
            for line in sys.stdin:
                assert line.strip() in names
                print(json.dumps({"seconds": 0.5}), flush=True)
        """)
    )
    monkeypatch.setattr(optimizer, "FBGEMM_SCRIPT", path)


def work(vocab=131, rows=7):
    return Work(vocab_size=vocab, width=33, ids=touched_rows(vocab, rows))


@pytest.mark.parametrize(("vocab", "sets"), [(100, 1), (250, 2), (1000, 4)])
def test_touched_rows_are_sorted_disjoint_and_spread(vocab, sets):
    found = touched_rows(vocab, 100)
    assert len(found) == sets and len(torch.cat(found).unique()) == sets * 100
    for ids in found:
        assert torch.equal(ids, ids.unique()) and vocab * 0.3 < ids[50] < vocab * 0.7


@pytest.mark.parametrize("case", [*OURS, *PEERS], ids=lambda case: case.name)
def test_a_turn_moves_touched_rows_and_leaves_others(case, monkeypatch):
    """The weight is whatever the optimizer was built on; untouched rows had a zero gradient or none."""
    made = []
    parameter = torch.nn.Parameter
    monkeypatch.setattr(torch.nn, "Parameter", lambda x: made.append(parameter(x)) or made[-1])
    step = case.build(work())
    step(0)
    step(len(work().ids))
    moved = (made[0] != 0).any(1).nonzero()[:, 0]
    assert torch.equal(moved, work().ids[0])


def test_bare_addition_adds_each_gradient_to_its_row():
    from retoken.bench.addition import add_rows

    weight, grad, ids = (x.numpy() for x in (torch.ones(131, 33), torch.randn(7, 33), work().ids[0]))
    expected = torch.ones(131, 33).index_add_(0, work().ids[0], torch.from_numpy(grad))
    add_rows(weight, grad, ids, 0, 7)
    assert torch.equal(torch.from_numpy(weight), expected)
    ADDITION.build(work())(3)


@pytest.mark.parametrize("case", STREAMS, ids=lambda case: case.name)
def test_streams_run(case):
    case.build(work())(3)


def test_ratios_and_bytes_by_hand():
    """Two vocabularies, times given: rows a second, bytes, share of bandwidth, growth, who is ahead."""
    times = {case.name: 1.0 for case in (*OURS, ADDITION, *PEERS)}
    seconds = {(STREAMS[0].name, 0): [0.5, 0.5], (STREAMS[1].name, 0): [2.0, 2.0]}
    for vocab, slower in ((40, 1.0), (131, 3.0)):
        seconds |= {(name, vocab): [s * slower] * 2 for name, s in times.items()}
    seconds["torch SparseAdam", 40] = [4.0, 4.0]
    found = optimizer._summary(seconds, [work(40), work(131)], "none")
    rates = {(rate.name, rate.vocab_size): rate for rate in found.rates}
    ours, larger, theirs = (
        rates[key] for key in (("RowAdamW", 40), ("RowAdamW", 131), ("torch SparseAdam", 40))
    )
    assert found.bandwidth == pytest.approx(28 * 7 * 33 / 0.5 / 1e9)
    assert ours.rows_per_second.median == 7 and ours.growth is None
    assert ours.gigabytes_per_second == pytest.approx(28 * 7 * 33 / 1e9)
    assert ours.of_bandwidth.median == pytest.approx(0.5)
    assert larger.growth is not None and larger.growth.median == 3
    assert theirs.ours_over_it.median == 4 and ours.ours_over_it.median == 1
    assert rates["RowWiseAdam", 40].of_bandwidth.median == pytest.approx(0.5 * 12 / 28)
    assert rates["RowWiseAdam", 40].of_addition.median == 1
    assert larger.of_addition.median == pytest.approx(28 / 12)


def test_command_prints_one_json_object(capsys):
    assert main([*SMALL, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["touched"] == 7 and found["width"] == 33
    assert {(rate["name"], rate["vocab_size"]) for rate in found["rates"]} == {
        (case.name, vocab) for case in (*OURS, ADDITION, *PEERS) for vocab in (40, 131)
    }
    assert found["peer"] == "FBGEMM did not run: no --peer-python was given"


def test_a_peer_s_turns_are_its_own_seconds(fake_fbgemm, capsys):
    assert main([*SMALL, "--json", "--peer-python", sys.executable]) == 0
    found = json.loads(capsys.readouterr().out)
    theirs = [rate for rate in found["rates"] if rate["name"].startswith("FBGEMM")]
    assert len(theirs) == 4 and all(rate["rows_per_second"]["median"] == 14 for rate in theirs)
    assert found["peer"].startswith("fbgemm_gpu 2 on torch 1")


def test_a_peer_that_cannot_run_is_named_and_the_rest_is_measured(capsys):
    """This Python has no fbgemm."""
    assert main([*SMALL, "--peer-python", sys.executable]) == 0
    said = capsys.readouterr().out
    assert "RowAdamW" in said and "FBGEMM did not run under" in said and "ModuleNotFoundError" in said


def test_a_peer_that_dies_says_so(tmp_path):
    script = tmp_path / "peer.py"
    script.write_text("raise SystemExit(3)")
    with PeerProcess(Path(sys.executable), script, {}) as peer:
        assert peer.failed == "its Python ended with code 3"


def test_a_missing_python_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="nowhere, which does not exist"):
        PeerProcess(tmp_path / "nowhere", tmp_path, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--touched", "0"], "--touched is 0; accepted: from 1"),
        (["--repeats", "1"], "--repeats is 1; accepted: from 2"),
        (["--vocab-sizes"], "--vocab-sizes is []"),
        (["--touched", "41"], "touched is 41; accepted: up to the smallest vocabulary, 40"),
    ],
)
def test_bad_options_are_one_line_and_code_2(options, message, capsys):
    assert main([*SMALL, *options]) == 2
    assert message in capsys.readouterr().err
