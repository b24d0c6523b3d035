"""The time model by hand, its constants planted in synthetic measurements and found again, and the file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retoken.errors import ConfigError, DataError
from retoken.plan import Machine, Work, fit, step_time
from retoken.plan.clock import overhead

MACHINE = Machine(
    flops=1e10,
    memory_bandwidth=4e9,
    link_bandwidth=1e9,
    latency=2e-5,
    host_bandwidth=8e9,
    overlap=0.3,
    fixed=0.01,
)


def test_a_step_by_hand() -> None:
    work = Work(
        forward_flops=1e10,
        backward_flops=2e10,
        memory_bytes=2e9,
        host_bytes=16e9,
        waited_messages=100,
        waited_bytes=1e8,
        forward_messages=1000,
        forward_bytes=5e8,
        forward_window=0.5,
        backward_messages=0,
        backward_bytes=2e9,
        backward_window=1.0,
    )
    time = step_time(work, MACHINE)
    assert time.compute == pytest.approx(3.0)
    assert time.tables == pytest.approx(0.5)
    assert time.waited == pytest.approx(100 * 2e-5 + 0.1)
    # 0.02 + 0.5 of exchange and 1 of host copies, beside 0.5 * 0.3 * 1 second of compute.
    assert time.forward_exposed == pytest.approx(1.52 - 0.15)
    assert time.backward_exposed == pytest.approx(3.0 - 0.6)
    assert time.total == pytest.approx(3 + 0.5 + 0.102 + 1.37 + 2.4 + 0.01)
    hidden = replace(work, forward_bytes=0.0, forward_messages=0, host_bytes=0.0, backward_bytes=5e8)
    assert step_time(hidden, MACHINE).forward_exposed == 0
    assert step_time(hidden, MACHINE).backward_exposed == 0
    crowded = step_time(replace(work, crowding=2.0), MACHINE)
    assert crowded.total == pytest.approx(2 * (time.total - 0.01) + 0.01)
    base = Work(forward_flops=1e10, backward_flops=2e10)
    assert overhead(work, base, MACHINE) == pytest.approx(time.total / 3.01 - 1)


def _measurements(machine: Machine, noise: float, count: int = 40) -> list[fit.Measurement]:
    chance = np.random.default_rng(5)

    def some(high: float) -> float:
        return float(high * chance.uniform(0.05, 1) * (chance.random() < 0.8))

    found = []
    for number in range(count):
        work = Work(
            forward_flops=1e9 * chance.uniform(0.5, 2),
            backward_flops=2e9 * chance.uniform(0.5, 2),
            memory_bytes=some(1e9),
            waited_messages=some(3000),
            waited_bytes=some(1e8),
            forward_messages=some(3000),
            forward_bytes=some(3e8),
            forward_window=0.9,
            backward_messages=some(3000),
            backward_bytes=some(3e8),
            backward_window=0.9,
            crowding=float(chance.choice([1, 2])),
        )
        seconds = step_time(work, machine).total * float(np.exp(noise * chance.standard_normal()))
        found.append(
            fit.Measurement(name=f"run {number}", held_out=number % 5 == 0, seconds=seconds, work=work)
        )
    return found


START = Machine(flops=1e12, memory_bandwidth=1e11, link_bandwidth=1e11, latency=1e-6, host_bandwidth=1e11)


def test_planted_constants_are_found() -> None:
    found = fit.fit(_measurements(MACHINE, 0.0), START)
    for name in ("flops", "memory_bandwidth", "link_bandwidth", "latency", "fixed"):
        assert getattr(found.machine, name) == pytest.approx(getattr(MACHINE, name), rel=1e-3), name
    assert found.machine.overlap == pytest.approx(0.3, abs=1e-3)
    assert found.worst < 1e-4 and len(found.held_out) == 8
    assert found.worst_held_out is not None and found.worst_held_out < 1e-4


def test_what_no_measurement_bears_on_stays_as_given() -> None:
    found = fit.fit(_measurements(MACHINE, 0.0), START)
    assert "host_bandwidth" not in found.fitted and found.machine.host_bandwidth == START.host_bandwidth
    plain = [
        replace(each, work=Work(forward_flops=each.work.forward_flops)) for each in _measurements(MACHINE, 0)
    ]
    plain = [replace(each, seconds=each.work.forward_flops / 5e9 + 0.2) for each in plain]
    only = fit.fit(plain, START)
    assert only.fitted == ("flops", "fixed")
    assert only.machine.flops == pytest.approx(5e9, rel=1e-3)
    assert only.machine.latency == START.latency and only.machine.overlap == START.overlap


def test_noise_shows_in_the_errors_and_held_out_rows_do_not_make_the_fit() -> None:
    noisy = _measurements(MACHINE, 0.03)
    found = fit.fit(noisy, START)
    assert 0.005 < found.worst < 0.15
    spoilt = [replace(each, seconds=10 * each.seconds) if each.held_out else each for each in noisy]
    again = fit.fit(spoilt, START)
    assert again.machine == found.machine
    assert again.worst_held_out is not None and again.worst_held_out > 0.8


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(DataError, match="4 measurements that are not held out; accepted: at least 6"):
        fit.fit(_measurements(MACHINE, 0.0, 5), START)


def test_the_file_comes_back(tmp_path: Path) -> None:
    there = _measurements(MACHINE, 0.1, 6)
    fit.write(tmp_path / "m.csv", there)
    assert (tmp_path / "m.csv").read_text().splitlines()[0] == ",".join(fit.COLUMNS)
    assert fit.read(tmp_path / "m.csv") == there


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no column held_out"),
        ("name,seconds\na,1\n", "no column held_out"),
        ("name,held_out,seconds\na,0,0\n", "line 2: held_out is '0' and seconds 0.0"),
        ("name,held_out,seconds\na,0,1\nb,maybe,1\n", "line 3: held_out is 'maybe'"),
        ("name,held_out,seconds\na,0,fast\n", "line 2: could not convert"),
        ("name,held_out,seconds,memory_bytes\na,0,1,-4\n", "line 2: a negative or infinite number"),
        ("name,held_out,seconds,crowding\na,0,1,0\n", "line 2: a negative or infinite number"),
        ("name,held_out,seconds,crowding\na,0\n", "line 2"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError, match=f"m.csv.*{says}"):
        fit.read(tmp_path / "m.csv")
    with pytest.raises(DataError, match=r"none\.csv cannot be read"):
        fit.read(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"link_bandwidth": -1.0}, "link_bandwidth is -1.0; accepted: a number above 0"),
        ({"flops": 0.0}, "flops is 0.0"),
        ({"latency": float("nan")}, "latency is nan"),
        ({"overlap": 1.5}, "overlap is 1.5; accepted: a number from 0 to 1"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(values: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(MACHINE, **values)
