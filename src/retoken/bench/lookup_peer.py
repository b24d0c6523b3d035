"""FBGEMM's turns in a lookup's bench, where a Python has it and it can do the same."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from retoken.bench.lookup_ids import Ids, Stream, stream
from retoken.bench.lookup_room import Contender, Setting, States
from retoken.bench.lookup_turns import Case, calls_of
from retoken.bench.peer import PeerProcess

SCRIPT = Path(__file__).with_name("fbgemm_lookup.py")
SERVED = {"gather": "whole", "mix": "mixture"}
"""{operation: how much of it FBGEMM does}."""
TYPES = {"float32": "", "bfloat16": ", float16 rows", "int8": ", int8 rows"}
"""{row type: what FBGEMM has in its place}."""


class Peer:
    """FBGEMM's process for one setting; none where it does not serve it."""

    def __init__(
        self, python: Path | None, setting: Setting, tokens: Sequence[int], ids: Sequence[Ids]
    ) -> None:
        self.setting, self._stack = setting, ExitStack()
        self._process: PeerProcess | None = None
        self.said = "" if python else "FBGEMM did not run: no --peer-python was given"
        """Which FBGEMM runs, or why none does; empty where it does not serve the setting."""
        if python is None or setting.operation not in SERVED or setting.rows not in TYPES:
            return
        process = self._stack.enter_context(PeerProcess(python, SCRIPT, options(setting, tokens, ids)))
        if process.failed:
            self.said = f"FBGEMM did not run under {python}: {process.failed}"
            return
        self._process = process
        self.said = f"fbgemm_gpu {process.about['fbgemm_gpu']} on torch {process.about['torch']}"

    def cases(self, ids: Stream, tokens: int, kind: Ids) -> list[Case]:
        """Its turns for calls of T tokens: one case, or none."""
        if self._process is None:
            return []
        name = f"FBGEMM TBE inference{TYPES[self.setting.rows]}"
        contender = Contender(name=name, call=_elsewhere, does=SERVED[self.setting.operation])
        turn = functools.partial(self._process.turn, f"{tokens} {kind}")
        return [
            Case(contender=contender, turn=turn, row_bytes=ids.distinct(tokens) * self.setting.token_bytes)
        ]

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def options(setting: Setting, tokens: Sequence[int], ids: Sequence[Ids]) -> dict[str, Any]:
    """What the script is told: its table, ids and choices, the same as ours."""
    routing = {str(count): States(setting, count).routing for count in tokens}
    most = max(tokens)
    return {
        "threads": torch.get_num_threads(),
        "operation": setting.operation,
        "rows": setting.rows,
        "vocab": setting.vocab_size,
        "width": setting.width,
        "experts": setting.experts,
        "tokens": list(tokens),
        "calls": {str(count): calls_of(count) for count in tokens},
        "ids": {kind: stream(kind, setting.vocab_size, most).ids.tolist() for kind in ids},
        "chosen": {count: each.chosen_TK.tolist() for count, each in routing.items()},
        "weights": {count: each.weights_TK.tolist() for count, each in routing.items()},
    }


def _elsewhere(_: Any) -> None:
    """Its calls are made in another process."""
