"""Runs as child processes: so many at once, told to stop together, their events brought home."""

import json
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from retoken import errors
from retoken.compare.folder import RunKey
from retoken.train.config import TrainConfig
from retoken.train.signals import StopRequest

OnEvent = Callable[[RunKey, dict[str, Any]], None]
_EXIT = "exit"


@dataclass(frozen=True, slots=True)
class _Child:
    key: RunKey
    process: subprocess.Popen[str]
    log: Path


class _Failed(Exception):
    """A child ended with an error; the others are stopped before it is told."""

    def __init__(self, key: RunKey, error: Exception) -> None:
        self.key, self.error = key, error


def launch(
    jobs: Mapping[RunKey, TrainConfig],
    *,
    at_once: int,
    on_event: OnEvent,
    on_done: Callable[[RunKey], Any],
    on_failed: Callable[[RunKey, Exception], Any] | None = None,
    may_start: Callable[[], bool] = lambda: True,
    samples: bool = True,
) -> None:
    """Run every job, the first ones first.

    A signal, or a run that fails, lets the running ones write a checkpoint and stop.

    Args:
        jobs: What to run.
        at_once: How many together.
        on_event: Called in this thread with every event of every run.
        on_done: Called in this thread when a run has finished.
        on_failed: Called when a run has failed, and the others go on; None: they stop.
        may_start: Asked before each run; once it says no, what is running is finished and nothing else begun.
        samples: Whether every trained model writes texts, too.

    Raises:
        RetokenError: As the failing run raised it.
        RuntimeError: A run broke down; its log is named.
        KeyboardInterrupt: SIGINT or SIGTERM came.
    """
    waiting, running, inbox = list(jobs), {}, queue.Queue()
    with StopRequest() as stop:
        try:
            while waiting or running:
                while waiting and len(running) < at_once and not stop.requested:
                    if not may_start():
                        waiting.clear()
                        break
                    key = waiting.pop(0)
                    on_event(key, {"kind": "launch"})
                    running[key] = _start(key, jobs[key], inbox, samples)
                if stop.requested:
                    raise KeyboardInterrupt
                try:
                    _handle(inbox, running, on_event, on_done)
                except _Failed as failed:
                    if on_failed is None:
                        raise
                    _bury(running.pop(failed.key, None))
                    on_failed(failed.key, failed.error)
        except (_Failed, KeyboardInterrupt) as stopped:
            _stop(running.values(), on_event)
            if isinstance(stopped, _Failed):
                raise stopped.error from None
            raise
        finally:
            _kill(running.values())


def _start(
    key: RunKey, config: TrainConfig, inbox: "queue.Queue[tuple[RunKey, dict[str, Any]]]", samples: bool
) -> _Child:
    log = config.out.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as stderr:
        # A session of its own: Ctrl-C on the terminal reaches this process only, which passes it on once.
        process = subprocess.Popen(
            [sys.executable, "-m", "retoken.compare.child"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True,
        )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps({"train": config.to_dict(), "samples": samples}))
        process.stdin.close()
    except BrokenPipeError:
        pass  # it died at once; its exit code and log tell
    threading.Thread(target=_read, args=(key, process, process.stdout, inbox), daemon=True).start()
    return _Child(key, process, log)


def _read(key: RunKey, process: subprocess.Popen[str], lines: IO[str], inbox: queue.Queue) -> None:
    for line in lines:
        inbox.put((key, json.loads(line)))
    inbox.put((key, {"kind": _EXIT, "code": process.wait()}))


def _handle(
    inbox: queue.Queue, running: dict[RunKey, _Child], on_event: OnEvent, on_done: Callable[[RunKey], Any]
) -> None:
    try:
        key, event = inbox.get(timeout=0.2)
    except queue.Empty:
        return
    if key not in running:
        return  # last words of a run that was given up
    if event["kind"] == "error":
        raise _Failed(key, _error(key, event))
    if event["kind"] != _EXIT:
        on_event(key, event)
        return
    child = running.pop(key)
    if event["code"] == 130:
        raise KeyboardInterrupt
    if event["code"] != 0:
        ended = _ended(event["code"])
        raise _Failed(key, RuntimeError(f"run {key.label} broke down ({ended}); see {child.log}"))
    child.log.unlink(missing_ok=True)
    on_event(key, {"kind": "done"})
    on_done(key)


def _bury(child: _Child | None) -> None:
    """A run that told its error is on its way out."""
    if child is not None:
        child.process.wait()
        child.log.unlink(missing_ok=True)


def _error(key: RunKey, event: Mapping[str, Any]) -> Exception:
    kind = getattr(errors, str(event["type"]), errors.RetokenError)
    return kind(f"run {key.label}: {event['message']}")


def _ended(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"{name}, perhaps for lack of memory" if name == "SIGKILL" else name


def _stop(children: Iterable[_Child], on_event: OnEvent) -> None:
    """Ask for a checkpoint and wait for it; the pipes are drained by their threads meanwhile."""
    children = list(children)
    for child in children:
        if child.process.poll() is None:
            on_event(child.key, {"kind": "stopping"})
            child.process.send_signal(signal.SIGTERM)
    for child in children:
        child.process.wait()
        if child.process.returncode in (0, 130, -signal.SIGTERM):
            child.log.unlink(missing_ok=True)


def _kill(children: Iterable[_Child]) -> None:
    """After a second signal: nothing may outlive this process."""
    for child in children:
        if child.process.poll() is None:
            child.process.kill()
            child.process.wait()
