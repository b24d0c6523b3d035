"""A study, runnable: processes of a job under torchrun are killed at random, and the job must not notice.

    python tests/checkpoint/kills.py --data STORE --work FOLDER --kills 50

Every job trains a tiny model on two processes, which torchrun starts again whenever one of them is gone.
Every other kill waits for a moment in which a checkpoint is being written; the others fall at any moment,
also while the processes start. A job that comes to its end must have the loss and the weights, bit for bit,
of a job that nobody disturbed. Prints a row a kill, and fails at the first thing that was lost.
"""

import argparse
import contextlib
import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 600.0
"""Seconds after which a job counts as stuck."""
TRAIN = ("--batch-size", "4", "--context-length", "16", "--eval-tokens", "400", "--log-every", "20", "--json")
_GOES_ON = re.compile(r"going on from step (\d+) of")


class Job:
    """A run under torchrun."""

    def __init__(self, out: Path, data: Path, options: list[str], processes: int, restarts: int) -> None:
        self.out, self.processes = out, processes
        self.said = out.with_suffix(".err")
        launch = ["-m", "torch.distributed.run", "--standalone", "--max-restarts", str(restarts)]
        launch += ["--nproc-per-node", str(processes), "-m", "retoken", "train", "cpu-xs"]
        words = ["--data", str(data), "--out", str(out), *TRAIN, *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self.said.open("w") as err, out.with_suffix(".out").open("w") as printed:
            self.agent = subprocess.Popen(
                [sys.executable, *launch, *words], stdout=printed, stderr=err, env=environment
            )

    @property
    def over(self) -> bool:
        """Whether torchrun has left."""
        return self.agent.poll() is not None

    @property
    def newest(self) -> int:
        """The step of the newest checkpoint; -1: none yet."""
        found = self._names(r"step-(\d+)")
        return max((int(step) for step in found), default=-1)

    def saves_since(self, there: float) -> bool:
        """Whether a checkpoint is being written that was begun since then: the dead leave such folders."""
        for step in self._names(r"\.step-(\d+)\.partial"):
            with contextlib.suppress(FileNotFoundError):
                if (self.out / "checkpoints" / f".step-{step}.partial").stat().st_mtime > there:
                    return True
        return False

    def _names(self, pattern: str) -> list[str]:
        folder = self.out / "checkpoints"
        names = os.listdir(folder) if folder.is_dir() else []
        return [found.group(1) for name in names if (found := re.fullmatch(pattern, name))]

    def starts(self) -> list[int]:
        """The steps that the processes said they went on from."""
        return [int(step) for step in _GOES_ON.findall(self.said.read_text())]

    def trained_since(self, there: float) -> bool:
        """Whether a line of metrics was written, or cut off, since then."""
        lines = self.out / "metrics.jsonl"
        return lines.exists() and lines.stat().st_mtime > there

    def ranks(self) -> dict[int, int]:
        """{rank: process id} of those that live."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _parent(entry) == self.agent.pid:
                rank = _rank(entry)
                if rank is not None:
                    found[rank] = int(entry.name)
        return found

    def wait(self, for_what: str, done: Callable[[], bool], pause: float = 0.05) -> None:
        """Until something is so, or the job is over.

        Raises:
            SystemExit: It takes too long.
        """
        end = time.monotonic() + PATIENCE
        while not (done() or self.over):
            if time.monotonic() > end:
                self.stop()
                raise SystemExit(f"stuck: {for_what} did not come; see {self.said}")
            time.sleep(pause)

    def stop(self) -> None:
        """End it and its processes."""
        pids = [*self.ranks().values(), self.agent.pid]
        for pid in reversed(pids):
            os.kill(pid, signal.SIGKILL)
        self.agent.wait()

    def result(self) -> tuple[float, bytes]:
        """The held-out loss and the weights."""
        if self.agent.wait() != 0:
            raise SystemExit(f"torchrun left with {self.agent.returncode}: {self.said.read_text()[-2000:]}")
        loss = json.loads((self.out / "result.json").read_text())["val_loss"]
        return loss, (self.out / "model" / "model.safetensors").read_bytes()


def _parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return None


def _rank(process: Path) -> int | None:
    try:
        found = re.search(rb"(?:^|\0)RANK=(\d+)\0", (process / "environ").read_bytes())
    except OSError:
        return None
    return int(found.group(1)) if found else None


@dataclass
class Kill:
    """One kill, and what came of it."""

    job: int
    rank: int
    moment: str
    newest: int
    """Step of the newest checkpoint when it fell."""
    seconds: float = 0.0
    """Until all processes were there again."""
    went_on_from: int | None = None
    """None: they were killed again, or had begun anew, before they said so."""

    def row(self, number: int) -> str:
        """For the table."""
        newest = "-" if self.newest < 0 else self.newest
        step = "-" if self.went_on_from is None else self.went_on_from
        where = f"{number:4} {self.job:4} {self.rank:5}  {self.moment:9}"
        return f"{where} {newest:>7} {step:>9} {self.seconds:8.1f}"


HEAD = "kill  job  rank  moment     newest  goes on  seconds"


class Killer:
    """Kills a job's processes until its quota is used up."""

    def __init__(self, chance: random.Random, longest: float) -> None:
        self.chance, self.longest = chance, longest
        self.kills: list[Kill] = []

    def disturb(self, job: Job, number: int, quota: int) -> None:
        """Up to `quota` kills of one job, then let it come to its end."""
        while len(self.kills) < quota and not job.over:
            job.wait("processes", lambda: len(job.ranks()) == job.processes)
            there = time.time()
            if len(self.kills) % 2:
                job.wait("a save", functools.partial(job.saves_since, there), pause=0.0005)
                time.sleep(self.chance.uniform(0, 0.03))  # begun, written, renamed, or the old ones deleted
            else:
                due = time.monotonic() + self.chance.uniform(0, self.longest)
                job.wait("its time", functools.partial(_is_past, due))
            self._kill(job, number, there)

    def _kill(self, job: Job, number: int, there: float) -> None:
        """Kill one of the processes, which came at `there`, and see the job start again."""
        ranks = job.ranks()
        if job.over or len(ranks) < job.processes or (job.out / "result.json").exists():
            return
        rank = self.chance.choice(sorted(ranks))
        moment = (
            "saving" if job.saves_since(there) else "training" if job.trained_since(there) else "starting"
        )
        kill = Kill(number, rank, moment, job.newest)
        fell = time.monotonic()
        os.kill(ranks[rank], signal.SIGKILL)
        job.wait("a restart", lambda: len(job.ranks()) == job.processes and not _same(job.ranks(), ranks))
        kill.seconds = time.monotonic() - fell
        self.kills.append(kill)
        self._follow(job, kill)
        print(kill.row(len(self.kills)), flush=True)

    def _follow(self, job: Job, kill: Kill) -> None:
        """Every second time wait for what the processes say, the other times kill them while they start."""
        if kill.newest < 0 or self.chance.random() < 0.3:
            return
        before = len(job.starts())
        job.wait("going on", lambda: len(job.starts()) > before)
        if len(job.starts()) > before:
            kill.went_on_from = job.starts()[-1]
            if kill.went_on_from < kill.newest:
                job.stop()
                raise SystemExit(
                    f"lost: step {kill.newest} was whole, and it went on from {kill.went_on_from}"
                )


def _is_past(due: float) -> bool:
    return time.monotonic() > due


def _same(now: dict[int, int], before: dict[int, int]) -> bool:
    return bool(set(now.values()) & set(before.values()))


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="token store of `retoken prepare`")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs; made")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=600, help="of each job")
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--longest", type=float, default=25.0, help="seconds to the latest random kill")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--variant", default="mort")
    return parser


def main(words: list[str] | None = None) -> None:
    """The study."""
    given = _options().parse_args(words)
    given.work.mkdir(parents=True, exist_ok=True)
    options = [
        "--variant",
        given.variant,
        "--steps",
        str(given.steps),
        "--checkpoint-every",
        str(given.every),
    ]
    expected = Job(given.work / "whole", given.data, options, given.processes, 0).result()
    print(f"undisturbed: held-out loss {expected[0]}\n{HEAD}", flush=True)
    killer, jobs = Killer(random.Random(given.seed), given.longest), 0
    while len(killer.kills) < given.kills:
        jobs += 1
        job = Job(given.work / f"job{jobs}", given.data, options, given.processes, given.kills + 5)
        try:
            killer.disturb(job, jobs, given.kills)
            found = job.result()
        finally:
            if not job.over:
                job.stop()
        if found != expected:
            raise SystemExit(f"lost: job {jobs} ended with held-out loss {found[0]}, not {expected[0]}")
        print(f"job {jobs}: held-out loss {found[0]}, weights bit-equal", flush=True)
    _conclude(killer.kills, jobs)


def _conclude(kills: list[Kill], jobs: int) -> None:
    moments = {
        moment: sum(k.moment == moment for k in kills) for moment in ("starting", "training", "saving")
    }
    said = ", ".join(f"{count} while {moment}" for moment, count in moments.items())
    seconds = sorted(kill.seconds for kill in kills)
    print(
        f"{len(kills)} kills over {jobs} jobs ({said}), none lost; processes were there again after "
        f"{seconds[len(seconds) // 2]:.1f} s in the median, {seconds[-1]:.1f} s at most"
    )


if __name__ == "__main__":
    main()
