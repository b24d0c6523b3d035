"""What memory there is: of the machine, and of every group around this process."""

import os

import pytest

import retoken
from retoken.bench.decode.cap import ROOT, capped
from retoken.errors import ConfigError
from retoken.serving.available import available_bytes
from retoken.serving.tiers import MemoryTier

MACHINE = "MemTotal: 9 kB\nMemAvailable:     2000 kB\n"


def _tell(folder, groups, machine=MACHINE):
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "meminfo").write_text(machine)
    (folder / "proc" / "self" / "cgroup").write_text(groups)
    return folder / "proc", folder / "sys"


def _limit(folder, limit, stat, name):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"{limit}\n")
    (folder / "memory.stat").write_text(stat)


def test_without_groups_the_machine_decides(tmp_path):
    assert available_bytes(*_tell(tmp_path, "")) == 2000 << 10


def test_a_system_that_does_not_tell(tmp_path):
    assert available_bytes(tmp_path / "proc", tmp_path / "sys") is None


@pytest.mark.parametrize("inside", ["a/b", "a", ""])
def test_the_tightest_group_of_version_2_decides(tmp_path, inside):
    proc, sys = _tell(tmp_path, "0::/a/b\n")
    _limit(sys / "a" / "b", "max", "anon 1\n", "memory.max")
    _limit(sys / inside, 50_000, "anon 9000\nfile 30000\nshmem 1000\n", "memory.max")
    assert available_bytes(proc, sys) == 40_000


def test_groups_of_version_1_are_found_by_their_controller(tmp_path):
    proc, sys = _tell(tmp_path, "5:devices:/\n4:cpu,memory:/a\n0::/\n")
    _limit(sys / "memory" / "a", 50_000, "rss 1\ntotal_rss 60000\n", "memory.limit_in_bytes")
    assert available_bytes(proc, sys) == 0
    _limit(sys / "memory" / "a", 1 << 62, "total_rss 5\n", "memory.limit_in_bytes")
    assert available_bytes(proc, sys) == 2000 << 10


@pytest.mark.skipif(not os.access(ROOT, os.W_OK), reason="needs the memory cgroup, version 1, as root")
def test_a_tier_that_a_group_has_no_room_for_is_refused():
    with capped() as cap:
        cap.limit(cap.anonymous + (256 << 20))
        with pytest.raises(ConfigError, match=r"host tier needs \d+ bytes for 600 records; available: \d+"):
            MemoryTier.on_host(600, 1 << 20)
        MemoryTier.on_host(20, 1 << 20)


def test_a_budget_below_one_record_is_refused(build, tmp_path):
    options = {"path": tmp_path / "rows", "counts": range(1, 9)}
    with pytest.raises(ConfigError, match=r"budget of host is 5 bytes; accepted: 0, or from \d+ on"):
        retoken.place(build(), "disk", budget={"host": 5}, **options)


def test_a_file_that_the_disk_has_no_room_for_is_refused(build, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: _Usage)
    with pytest.raises(ConfigError, match=r"rows needs \d+ bytes; free there: 7 bytes"):
        retoken.place(build(), "disk", path=tmp_path / "rows")
    assert not list(tmp_path.iterdir())


class _Usage:
    free = 7
