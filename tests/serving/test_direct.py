"""The device's gather without a device: interpreted, compiled, and what it falls back to."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import retoken
from retoken.errors import ConfigError
from retoken.ops.triton import Parts, aot_gather, gather_parts
from retoken.serving import direct
from retoken.serving.direct import DeviceStage
from retoken.serving.layout import RecordLayout

ROOT = Path(__file__).parents[2]


def test_interpreted_gathers_are_the_hosts(python):
    """tests/serving/gather_run.py, every one of its tests."""
    words = ["-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "tests/serving/gather_run.py"]
    ran = python(*words, TRITON_INTERPRET="1")
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    passed = re.match(r"(\d+) passed", ran.stdout.strip().splitlines()[-1])
    assert passed and int(passed[1]) >= 100


def test_compiled_gathers_move_16_bytes_at_a_time_and_spill_nothing():
    cases = aot_gather.compile_gathers((80, 90))
    for case in cases:
        assert case.vectorised and case.wide_addresses and not case.spill_bytes and case.registers <= 32, case
        assert 0 <= case.moved - case.bound <= 8 * 2, case
    import triton

    if triton.__version__ == "3.9.0":
        page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
        assert aot_gather.report_gathers(cases) in page


def test_the_host_gathers_where_the_device_may_not(build, monkeypatch):
    """Refused rights, and memory that a kernel cannot read: no stage of the device's."""
    layout = RecordLayout(vocab_size=5, layers=(0,), rows_per_token=None, width=4, rows="float32")
    records, cpu = torch.zeros(5, layout.record_bytes, dtype=torch.uint8), torch.device("cpu")
    monkeypatch.setattr(direct, "_unregister", lambda *_: None)
    monkeypatch.setattr(direct, "_register", lambda *_: False)
    assert direct.device_stage(layout, records, cpu) is None
    monkeypatch.setattr(direct, "_register", lambda *_: True)
    assert direct.device_stage(layout, records, cpu) is None  # Triton does not interpret here
    monkeypatch.setattr(DeviceStage, "agrees", lambda self: True)
    assert direct.device_stage(layout, records, cpu).gathered_by == "device"


def test_what_is_not_understood_is_refused(build):
    with pytest.raises(ConfigError, match="gather is 'cpu'; accepted: host, device"):
        retoken.place(build(), "host", gather="cpu")
    placement = retoken.place(build(), "host", gather="device")
    assert placement.gathered_by is None  # a CPU reads records where they are


def test_what_does_not_fit_is_refused():
    out, records = torch.zeros(1, 2, 32, dtype=torch.uint8), torch.zeros(3, 64, dtype=torch.uint8)
    ids = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="ids: 3, accepted are up to 2"):
        gather_parts(out, records, ids.repeat(3), 0, Parts(16, 32, 4))
    with pytest.raises(ValueError, match="rooms of 32 bytes, needed are 36"):
        gather_parts(out, records, ids, 0, Parts(32, 32, 4))
    with pytest.raises(ValueError, match="records: 64 bytes each, needed are 80"):
        gather_parts(out, records, ids, 4, Parts(16, 0, 0))
    with pytest.raises(ValueError, match="the kernels run on a GPU, or under TRITON_INTERPRET=1"):
        gather_parts(out, records, ids, 0, Parts(16, 32, 4))
