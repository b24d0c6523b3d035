"""kill -9 at any moment leaves the checkpoint before or the new one, whole.

The kills are dealt by a process of its own, this file as a script, which forks before it has any threads.
"""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from retoken.checkpoint import Chunk, Saver, newest
from retoken.checkpoint.chunks import whole
from retoken.checkpoint.folders import all_paths

KILLS = 25
SIZE = 60_000


def state_at(step: int) -> dict[str, Chunk]:
    """Tensors that tell the step they are of."""
    return {f"tensor.{number}": whole(torch.full((SIZE,), float(step * number))) for number in range(5)}


def save_until_killed(root: str, told) -> None:
    """Go on from the newest checkpoint, a step at a time, telling of each that is said to be on the disk."""
    torch.set_num_threads(1)
    saver = Saver(root=Path(root), keep=2)
    found = newest(Path(root))
    step = found.step if found else 0
    while True:
        step += 1
        saver.save(step, state_at(step), {"step": step})
        for path in saver.finished():
            os.write(told, f"{path.name}\n".encode())


def kill_savers(root: Path) -> None:
    """Start one after the other, kill each, and look at what it leaves."""
    context, chance = multiprocessing.get_context("fork"), random.Random(0)
    left_behind = told_in_all = 0
    for _ in range(KILLS):
        hear, tell = os.pipe()
        process = context.Process(target=save_until_killed, args=(str(root), tell))
        process.start()
        os.close(tell)
        assert os.read(hear, 1), "the process did not save"  # its first checkpoint is whole
        time.sleep(chance.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with os.fdopen(hear) as pipe:
            told = ("s" + pipe.read()).split()
        told_in_all += len(told)
        left_behind += any(path.name.startswith(".") for path in root.iterdir())
        check(root, at_least=int(told[-1].removeprefix("step-")))
    assert left_behind > KILLS // 3, f"only {left_behind} of {KILLS} kills hit a save"
    assert told_in_all > KILLS


def check(root: Path, at_least: int) -> None:
    """The newest checkpoint is whole, of one step, and not older than what was reported."""
    found = newest(root)
    assert found and found.step >= at_least, "a checkpoint that was reported is gone"
    tensors = found.tensors().read_all()
    for number in range(5):
        assert torch.equal(tensors[f"tensor.{number}"], torch.full((SIZE,), float(found.step * number)))
    assert found.state == {"step": found.step}
    assert len(all_paths(root)) <= 3


def test_a_kill_at_any_moment_of_a_save_loses_nothing_that_was_saved(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


if __name__ == "__main__":
    kill_savers(Path(sys.argv[1]))
