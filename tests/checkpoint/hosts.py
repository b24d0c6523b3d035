"""A study, runnable: a job on two hosts, of which one is cut off, comes back, and the job ends as it should.

    python tests/checkpoint/hosts.py --data STORE --work FOLDER --hosts namespaces

Hosts are network namespaces joined by a cable that is pulled (needs root), or, with `--hosts agents`, two
torchrun agents on this machine, of which one is stopped (SIGSTOP: it holds its connections and says nothing).
The host that stays must say within its time-out that the other one does not answer; then the other one is
started again, and the job must end with the loss and weights of a job that nobody disturbed.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TIMEOUT = 20
"""Seconds after which a process gives up waiting for another (`--timeout`)."""
FRESH_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Without it the agent that stays (PyTorch 2.13) never tells one that comes again where to meet."""
PATIENCE = 900.0
TRAIN = ("--batch-size", "4", "--context-length", "16", "--eval-tokens", "400", "--log-every", "20", "--json")


class Host:
    """A place where a torchrun agent can run: its network, and how to cut it off."""

    def __init__(self, name: str, address: str, prefix: tuple[str, ...] = (), interface: str = "") -> None:
        self.name, self.address, self.prefix, self.interface = name, address, prefix, interface
        self.agent: subprocess.Popen | None = None
        self.starts = 0

    def start(self, work: Path, words: list[str], meeting: str) -> None:
        """Start the agent, with one process."""
        self.starts += 1
        launch = [
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "2",
            "--nproc-per-node",
            "1",
            "--max-restarts",
            "9",
        ]
        launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "--rdzv-id", "study"]
        launch += ["--rdzv-conf", f"is_host={int(self.name == 'a')}"]
        launch += ["--local-addr", self.address, "-m", "retoken", "train", "cpu-xs"]
        environment = os.environ | {"OMP_NUM_THREADS": "1", **FRESH_STORE}
        if self.interface:
            environment["GLOO_SOCKET_IFNAME"] = self.interface
        self.said = work / f"{self.name}{self.starts}.err"
        with self.said.open("w") as err, (work / f"{self.name}.out").open("w") as out:
            command = [*self.prefix, sys.executable, *launch, *words]
            self.agent = subprocess.Popen(command, stdout=out, stderr=err, env=environment)

    def processes(self) -> list[int]:
        """The agent and all that came of it."""
        assert self.agent is not None
        found, queue = [], [self.agent.pid]
        while queue:
            pid = queue.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    queue += map(int, (task / "children").read_text().split())
        return found

    def signal(self, number: int) -> None:
        """Send a signal to all of it."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> None:
        """Whatever still runs is ended."""
        if self.agent is not None and self.agent.poll() is None:
            self.signal(signal.SIGKILL)
            self.agent.wait()


class Agents:
    """Two agents on loopback."""

    def __init__(self) -> None:
        self.hosts = [Host("a", "127.0.0.1"), Host("b", "127.0.0.1")]

    def cut(self) -> None:
        """Host b falls silent."""
        self.hosts[1].signal(signal.SIGSTOP)

    def join(self) -> None:
        """Nothing to mend: what was stopped is ended before b starts again."""

    def close(self) -> None:
        """Nothing to put back."""


class Namespaces:
    """Two network namespaces with a cable."""

    def __init__(self) -> None:
        mark = f"{os.getpid() % 10000}"
        self.names = [f"rt{mark}a", f"rt{mark}b"]
        self.cables = [f"v{mark}a", f"v{mark}b"]
        net = f"10.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 200}"
        addresses = [f"{net}.1", f"{net}.2"]
        for name in self.names:
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", self.cables[0], "type", "veth", "peer", "name", self.cables[1])
        for name, cable, address in zip(self.names, self.cables, addresses, strict=True):
            _run("ip", "link", "set", cable, "netns", name)
            for words in (["addr", "add", f"{address}/24", "dev", cable], ["link", "set", cable, "up"]):
                _run("ip", "-n", name, *words)
            _run("ip", "-n", name, "link", "set", "lo", "up")
        self.hosts = [
            Host(letter, address, ("ip", "netns", "exec", name), cable)
            for letter, name, cable, address in zip("ab", self.names, self.cables, addresses, strict=True)
        ]

    def cut(self) -> None:
        """Pull the cable at host b."""
        _run("ip", "-n", self.names[1], "link", "set", self.cables[1], "down")

    def join(self) -> None:
        """Plug it in."""
        _run("ip", "-n", self.names[1], "link", "set", self.cables[1], "up")

    def close(self) -> None:
        """Take the namespaces away, and the cable with them."""
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


def namespaces_work() -> bool:
    """Whether this user may make network namespaces and cables."""
    try:
        Namespaces().close()
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


@contextlib.contextmanager
def opened(kind: str) -> Iterator[Agents | Namespaces]:
    """The two hosts; all that was started on them is ended behind it."""
    network = Namespaces() if kind == "namespaces" else Agents()
    try:
        yield network
    finally:
        for host in network.hosts:
            host.end()
        network.close()


def wait(for_what: str, done: Callable[[], bool], hosts: list[Host]) -> float:
    """Until something is so; the seconds it took.

    Raises:
        SystemExit: It takes too long.
    """
    began = time.monotonic()
    while not done():
        if time.monotonic() - began > PATIENCE:
            raise SystemExit(f"{for_what} did not come: {[host.said.read_text()[-600:] for host in hosts]}")
        time.sleep(0.05)
    return time.monotonic() - began


def newest(out: Path) -> int:
    """The step of the newest checkpoint; -1: none."""
    names = os.listdir(out / "checkpoints") if (out / "checkpoints").is_dir() else []
    return max((int(n.removeprefix("step-")) for n in names if n.startswith("step-")), default=-1)


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(kind: str, data: Path, work: Path, steps: int, disturbed: bool) -> tuple[float, bytes]:
    """One job; its held-out loss and weights."""
    out = work / ("cut" if disturbed else "whole")
    words = ["--data", str(data), "--out", str(out), *TRAIN, "--variant", "mort", "--steps", str(steps)]
    words += ["--checkpoint-every", "10", "--timeout", str(TIMEOUT if disturbed else 300)]
    with opened(kind) as network:
        meeting = f"{network.hosts[0].address}:{free_port()}"
        for host in network.hosts:
            host.start(work, words, meeting)
        if disturbed:
            disturb(network, out, work, words, meeting)
        for host in network.hosts:
            assert host.agent is not None
            if host.agent.wait() != 0:
                raise SystemExit(f"host {host.name} left: {host.said.read_text()[-2000:]}")
    loss = json.loads((out / "result.json").read_text())["val_loss"]
    return loss, (out / "model" / "model.safetensors").read_bytes()


def disturb(network: Agents | Namespaces, out: Path, work: Path, words: list[str], meeting: str) -> None:
    """Cut host b off, see host a say so in time, start b again, see the job go on."""
    a, b = network.hosts
    wait("a checkpoint", lambda: newest(out) >= 20, [a, b])
    before = len(a.said.read_text())
    network.cut()
    seconds = wait("the error", lambda: "did not answer" in a.said.read_text()[before:], [a, b])
    line = next(line for line in a.said.read_text()[before:].splitlines() if "did not answer" in line)
    kept = newest(out)
    print(f"cut off at step {kept} or behind it; after {seconds:.1f} s host a says:\n  {line}", flush=True)
    if not re.search(rf"did not answer within {TIMEOUT} s; last good checkpoint: \S+step-{kept:06d}", line):
        raise SystemExit("that does not say what happened")
    if seconds > 2 * TIMEOUT + 10:
        raise SystemExit(f"the time-out is {TIMEOUT} s")
    b.end()
    network.join()
    b.start(work, words, meeting)
    pattern = re.compile(r"going on from step (\d+)")
    seconds = wait("going on", lambda: bool(pattern.search(_said(a, before) + _said(b))), [a, b])
    gone_on = pattern.findall(_said(a, before) + _said(b))
    print(f"host b started again; after {seconds:.1f} s both go on from step {gone_on[-1]}", flush=True)
    if int(gone_on[-1]) < kept:
        raise SystemExit(f"lost: step {kept} was whole")


def _said(host: Host, start: int = 0) -> str:
    return host.said.read_text()[start:]


def main(words: list[str] | None = None) -> None:
    """The study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="token store of `retoken prepare`")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs; made")
    parser.add_argument("--hosts", choices=["namespaces", "agents"], default="agents")
    parser.add_argument("--steps", type=int, default=200)
    given = parser.parse_args(words)
    given.work.mkdir(parents=True, exist_ok=True)
    expected = run(given.hosts, given.data, given.work, given.steps, disturbed=False)
    found = run(given.hosts, given.data, given.work, given.steps, disturbed=True)
    if found != expected:
        raise SystemExit(f"lost: it ended with held-out loss {found[0]}, not {expected[0]}")
    print(f"held-out loss {found[0]} with and without the cut, weights bit-equal")


if __name__ == "__main__":
    main()
