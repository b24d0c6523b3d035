"""`retoken <verb>`: finds the verb's module, reads its options, and turns errors into exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from typing import NamedTuple

from retoken.errors import RetokenError

DONE, OURS, CALLERS, INTERRUPTED = 0, 1, 2, 130
TRACEBACK_VARIABLE = "RETOKEN_TRACEBACK"


class Verb(NamedTuple):
    """Where a verb lives; its module is imported only when it is used."""

    module: str
    command: str
    summary: str


VERBS = {
    "prepare": Verb("retoken.cli.prepare", "Prepare", "text -> token shards"),
    "train": Verb("retoken.cli.train", "Train", "one run, on one process or under torchrun"),
    "compare": Verb("retoken.cli.compare", "Compare", "the main job: baseline and variants under one recipe"),
    "presets": Verb("retoken.cli.presets", "Presets", "the paper's backbones and ours, counted"),
    "plan": Verb("retoken.cli.plan", "Plan", "memory, bytes and time of a run on any number of ranks"),
    "scaling": Verb("retoken.cli.scaling", "Scaling", "a scaling study: its plan, its runs, its laws"),
    "eval": Verb("retoken.cli.eval", "Eval", "held-out loss of a checkpoint, or benchmark tasks"),
    "generate": Verb("retoken.cli.generate", "Generate", "text from a checkpoint"),
    "serve": Verb("retoken.cli.serve", "Serve", "an OpenAI-compatible server of a checkpoint, on vLLM"),
    "export": Verb("retoken.cli.export", "Export", "a checkpoint -> a model folder, or packed rows"),
    "inspect": Verb("retoken.cli.inspect", "Inspect", "what a checkpoint's tables learned, as a page"),
    "bench": Verb("retoken.cli.bench", "Bench", "side-by-side timings, ratios first"),
}


def usage() -> str:
    """The list of verbs."""
    lines = [f"  {name:<9} {verb.summary}" for name, verb in VERBS.items()]
    head, foot = "usage: retoken <verb> [options]", "`retoken <verb> --help` lists its options."
    return "\n".join([head, "", *lines, "", foot])


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0 done; 2 the caller's mistake, told in one line on stderr; 1 a failure of ours; 130 interrupted.
    """
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return DONE if args else CALLERS
    if args[0] == "--version":
        from retoken import __version__

        print(f"retoken {__version__}")
        return DONE
    if args[0] not in VERBS:
        return _say("retoken", f"unknown verb {args[0]!r}; accepted: {', '.join(VERBS)}", CALLERS)
    return _run(VERBS[args[0]], f"retoken {args[0]}", args[1:])


def _run(verb: Verb, prog: str, args: list[str]) -> int:
    from retoken.cli.options import UsageError, parse, quiet_libraries

    try:
        quiet_libraries()
        command = parse(getattr(importlib.import_module(verb.module), verb.command), prog, args)
        return DONE if command is None else command.run()
    except (RetokenError, UsageError) as error:
        return _say(prog, str(error), CALLERS)
    except KeyboardInterrupt as stop:
        return _say(prog, f"interrupted: {stop}" if str(stop) else "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output went away (`| head`); Python would complain again while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OURS
    except Exception as error:
        return _say(prog, f"{_name(error)}: {error}; {_keep_traceback()}", OURS)


def _say(prog: str, message: str, code: int) -> int:
    print(f"{prog}: {' '.join(message.split())}", file=sys.stderr)
    return code


def _name(error: Exception) -> str:
    kind = type(error)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _keep_traceback() -> str:
    """Print the traceback where asked for, otherwise keep it in a file; says which."""
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()
        return "traceback above"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="retoken-", suffix=".traceback", delete=False) as file:
            traceback.print_exc(file=file)
    except OSError:
        return f"set {TRACEBACK_VARIABLE}=1 to see the traceback"
    return f"traceback in {file.name}"


if __name__ == "__main__":
    sys.exit(main())
