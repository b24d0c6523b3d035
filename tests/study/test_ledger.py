"""The table of runs made so far."""

from types import SimpleNamespace

import pytest

from retoken.errors import CheckpointError
from retoken.study.ledger import Ledger


def test_runs_are_kept_found_and_sorted(tmp_path):
    path = tmp_path / "runs.csv"
    ledger = Ledger(path, ("variant", "seed"), ("val_loss",))
    ledger.add({"variant": "mort", "seed": 1}, SimpleNamespace(val_loss=4.25))
    ledger.add({"variant": "baseline", "seed": 0}, SimpleNamespace(val_loss=5.5))
    ledger.add({"variant": "mort", "seed": 1}, SimpleNamespace(val_loss=4.5))
    again = Ledger(path, ("variant", "seed"), ("val_loss",))
    assert path.read_text() == "variant,seed,val_loss\nbaseline,0,5.5\nmort,1,4.5\n"
    assert again.rows == ledger.rows
    assert again.has({"variant": "mort", "seed": 1}) and not again.has({"variant": "mort", "seed": 2})
    assert list(tmp_path.iterdir()) == [path]


def test_another_table_is_refused(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("variant,loss\nmort,1\n")
    with pytest.raises(CheckpointError, match=r"has the columns .*accepted: variant, seed, val_loss"):
        Ledger(path, ("variant", "seed"), ("val_loss",))
