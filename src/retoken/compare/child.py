"""One run in a process of its own, so that its memory and threads are its own.

``python -m retoken.compare.child`` takes its job on stdin, as JSON: ``{"train": TrainConfig.to_dict(),
"samples": bool}``. Events go out as JSON lines on stdout; what libraries print goes to stderr. Exit codes are
those of the command line.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

Emit = Callable[[dict[str, Any]], None]


def main() -> int:
    """Run the job on stdin."""
    emit = _emitter(_own_stdout())
    from retoken.errors import RetokenError

    try:
        _work(json.load(sys.stdin), emit)
        return 0
    except RetokenError as error:
        emit({"kind": "error", "type": type(error).__name__, "message": str(error)})
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception:  # told to the parent, which names the log
        traceback.print_exc()
        return 1


def _work(job: dict[str, Any], emit: Emit) -> None:
    from retoken.compare.runs import SAMPLES_FILE
    from retoken.compare.samples import write_samples
    from retoken.train.config import TrainConfig
    from retoken.train.loop import train

    config = TrainConfig.from_dict(job["train"])
    train(config, on_event=emit)
    if job.get("samples", True) and not (Path(config.out) / SAMPLES_FILE).exists():
        emit({"kind": "samples"})
        write_samples(Path(config.out), config.data)


def _own_stdout() -> TextIO:
    """The real stdout for events alone; from here on ``print`` and C libraries write to stderr."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return events


def _emitter(out: TextIO) -> Emit:
    """Writes events until nobody reads them any more; then asks this process to save and stop."""
    heard = True

    def emit(event: dict[str, Any]) -> None:
        nonlocal heard
        if not heard:
            return
        try:
            out.write(json.dumps(event) + "\n")
        except BrokenPipeError:
            heard = False
            os.kill(os.getpid(), signal.SIGTERM)

    return emit


if __name__ == "__main__":
    sys.exit(main())
