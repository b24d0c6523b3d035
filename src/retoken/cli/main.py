"""`retoken <verb>`: finds the verb's module, reads its options, and turns errors into exit codes."""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

from retoken.errors import RetokenError


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
    "eval": Verb("retoken.cli.eval", "Eval", "held-out loss and bits per byte of a checkpoint"),
    "generate": Verb("retoken.cli.generate", "Generate", "text from a checkpoint"),
    "bench": Verb("retoken.cli.bench", "Bench", "side-by-side timings, ratios first"),
}


def usage() -> str:
    """The list of verbs."""
    lines = [f"  {name:<9} {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(["usage: retoken <verb> [options]", "", *lines, "", "`retoken <verb> --help` lists its options."])


def main(argv: list[str] | None = None) -> int:
    """Run one verb.

    Returns:
        0 done; 2 the caller's mistake, told in one line on stderr; 1 a failure of ours; 130 interrupted.
    """
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else 2
    if args[0] not in VERBS:
        print(f"retoken: unknown verb {args[0]!r}; accepted: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    return _run(VERBS[args[0]], args[0], args[1:])


def _run(verb: Verb, name: str, args: list[str]) -> int:
    import tyro

    try:
        command = getattr(importlib.import_module(verb.module), verb.command)
        return tyro.cli(command, args=args, prog=f"retoken {name}").run()
    except RetokenError as error:
        print(f"retoken {name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"retoken {name}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
