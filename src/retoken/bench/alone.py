"""The exchange alone against TorchRec's row-wise sharding: the same ids, ranks and machine, in turns."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retoken.bench.crew import Crew
from retoken.bench.fetches import parse
from retoken.bench.requests import Requests
from retoken.bench.turns import Turns, take
from retoken.data.tokens import TokenStore
from retoken.errors import ConfigError
from retoken.parallel import Layout
from retoken.plan import Grid, Tables, traffic
from retoken.train.timing import Spread

TORCHREC_SCRIPT = Path(__file__).with_name("torchrec_peer.py")
HOW_TO_GET_IT = "pip install torch torchrec fbgemm-gpu-cpu in a Python of its own, and --peer-python its path"
EXCHANGES = ("early", "routed", "mixed")
OURS = (
    "retoken V early",
    "retoken V each",
    *(f"mort {layout} {exchange}" for layout in ("V", "E", "VxE") for exchange in EXCHANGES),
    "mort V each",
)
"""Our cases: modulator, layout, exchange; "each": every token asks for its rows itself."""
PEERS = tuple(f"{kind} {how}" for kind in ("retoken", "mort") for how in ("unique", "as they are"))
"""TorchRec's: ids made unique before, or as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """What is fetched."""

    tokens: int
    """T of a rank's pass."""
    context_length: int
    """Of a sequence."""
    layers: int
    """Layers with a table."""
    width: int
    """D."""
    modulators: int = 5
    """E of MoRT."""
    top_k: int = 3
    """K of MoRT."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetching:
    """One way of fetching rows."""

    name: str
    """Ours: modulator, layout, exchange; TorchRec's begin with its name."""
    rows_per_second: Spread
    """Rows of a token in a layer, of all ranks."""
    step_seconds: Spread
    """A pass: rows of all layers fetched, used, and moved by their gradients."""
    cpu_seconds: Spread
    """CPU seconds of a pass, all ranks."""
    over_peer: Spread | None
    """Speed over TorchRec's with unique ids, in the same repeat; None where that did not run."""
    cpu_over_peer: Spread | None
    """The same in CPU seconds, which other processes disturb less."""
    sent: float | None
    """Bytes the busiest rank sent others in one pass; None for TorchRec."""
    planned: float | None
    """What the plan says of the same ids."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Alone:
    """All ways, measured in turns."""

    fetchings: list[Fetching]
    """Ours, then TorchRec's."""
    peer: str
    """Which TorchRec ran, or why none did and how to get it."""
    turns: Turns
    """Every turn."""


def measure(
    store: TokenStore,
    size: Size,
    *,
    ranks: int = 4,
    threads: int = 1,
    steps: int = 4,
    repeats: int = 8,
    peer_python: Path | None = None,
) -> Alone:
    """Time every layout and exchange, and TorchRec's, one after the other and back again.

    Args:
        store: Where ids come from; its vocabulary is the tables'.
        size: What is fetched.
        ranks: gloo processes.
        threads: Of each.
        steps: Passes of one turn.
        repeats: Turns, at least 2.
        peer_python: A Python with torchrec; None: that peer is left out.

    Raises:
        ConfigError: No multiple of the context, or not a Python.
        TrainingError: A rank failed.
    """
    if size.tokens % size.context_length:
        raise ConfigError(f"tokens is {size.tokens}; accepted: a multiple of {size.context_length}")
    if peer_python is not None and not peer_python.is_file():
        raise ConfigError(f"peer python is {peer_python}, which does not exist; accepted: an interpreter")
    with TemporaryDirectory(prefix="retoken-bench-") as folder, ExitStack() as stack:
        requests = _drawn(store, size, ranks, Path(folder))
        options = {
            "folder": folder,
            "vocab_size": store.manifest.vocab_size,
            "width": size.width,
            "modulators": size.modulators,
            "threads": threads,
        }
        command = [sys.executable, "-m", "retoken.bench.rank"]
        ours = Crew(command, ranks, options | {"part": "fetches", "cases": OURS}, threads=threads)
        stack.enter_context(ours)
        if ours.failed:
            raise ConfigError(f"the bench of exchanges cannot run: {ours.failed}")
        cases = {name: (ours, name) for name in OURS}
        peer = _torchrec(peer_python, ranks, options, cases, stack)
        turns = take(cases, steps=steps, repeats=repeats)
        sent = {name: _audited(ours, name) for name in OURS}
    planned = {name: _planned(requests, store, size, name) for name in OURS}
    found = [_fetching(name, turns, size, ranks, sent.get(name), planned.get(name)) for name in cases]
    return Alone(fetchings=found, peer=peer, turns=turns)


def _drawn(store: TokenStore, size: Size, ranks: int, folder: Path) -> Requests:
    requests = Requests.draw(
        store,
        ranks=ranks,
        batches=4,
        tokens=size.tokens,
        context_length=size.context_length,
        layers=size.layers,
        modulators=size.modulators,
        top_k=size.top_k,
    )
    requests.save(folder)
    return requests


def _torchrec(
    python: Path | None,
    ranks: int,
    options: dict[str, Any],
    cases: dict[str, tuple[Crew, str]],
    stack: ExitStack,
) -> str:
    """Add TorchRec's cases; says which it is, or why there are none."""
    if python is None:
        return f"TorchRec did not run: no --peer-python was given; to have it: {HOW_TO_GET_IT}"
    kinds = sorted({name.split()[0] for name in PEERS})
    crew = Crew([str(python), str(TORCHREC_SCRIPT)], ranks, options | {"kinds": kinds})
    stack.enter_context(crew)
    if crew.failed:
        return f"TorchRec did not run under {python}: {crew.failed}; to have it: {HOW_TO_GET_IT}"
    cases |= {f"TorchRec {name}": (crew, name) for name in PEERS}
    return f"torchrec {crew.about['torchrec']} on torch {crew.about['torch']}, row-wise, SGD in its backward"


def _audited(crew: Crew, name: str) -> list[dict[str, int]]:
    """{phase: bytes} of each rank for the first batch."""
    return [answer["sent"] for answer in crew.turn(case=name, steps=0)]


def _planned(requests: Requests, store: TokenStore, size: Size, name: str) -> list[dict[str, int]]:
    """The same by the plan."""
    kind = parse(name)
    vocab, modulators = store.manifest.vocab_size, size.modulators if kind.mixes else 1
    tables = Tables(
        vocab_size=vocab,
        width=size.width,
        layers=size.layers,
        modulators=modulators,
        top_k=size.top_k if kind.mixes else 1,
        mixes=kind.mixes,
    )
    ranks = len(requests.ids)
    layout = Layout.make(kind.layout, ranks, vocab, modulators)  # pyright: ignore
    grid = Grid(vocab_shards=layout.vocab_shards, modulator_shards=layout.modulator_shards)
    option = "sharded" if kind.exchange == "each" else kind.exchange
    chosen = [list(requests.chosen[rank, 0]) for rank in range(ranks)] if kind.mixes else None
    found = traffic.of_requests(list(requests.ids[:, 0]), tables, grid, option, chosen)
    return [{phase: int(found.flow(phase).sent[rank]) for phase in found.lanes} for rank in range(ranks)]


def _fetching(
    name: str,
    turns: Turns,
    size: Size,
    ranks: int,
    sent: list[dict[str, int]] | None,
    planned: list[dict[str, int]] | None,
) -> Fetching:
    kind = name.removeprefix("TorchRec ").split()[0]
    peer = f"TorchRec {kind} unique"
    beside = bool(turns.seconds(peer)) and name != peer
    rows = ranks * size.tokens * size.layers
    return Fetching(
        name=name,
        rows_per_second=Spread.of([rows / seconds for seconds in turns.seconds(name)]),
        step_seconds=Spread.of(turns.seconds(name)),
        cpu_seconds=Spread.of(turns.cpu(name)),
        over_peer=turns.speed(name, peer) if beside else None,
        cpu_over_peer=turns.speed(name, peer, cpu=True) if beside else None,
        sent=busiest(sent),
        planned=busiest(planned),
    )


def busiest(ranks: list[dict[str, int]] | None) -> float | None:
    """Bytes of all phases on the rank that has most."""
    return max(sum(phases.values()) for phases in ranks) if ranks else None
