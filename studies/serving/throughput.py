"""Servers side by side, asked in turns by the engine's own benchmark client: `throughput.csv`.

    python studies/serving/throughput.py --text STORE_TEXT.jsonl \
        --server plain=FOLDER --server 'retoken host=FOLDER={"tables": "host"}' ...

Each server is `retoken serve`; the first is what the others are compared with. All are up from the beginning,
and each turn asks every one of them once, so that what else the machine does meets all alike.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

HERE = Path(__file__).parent
RUN_CLIENT = """
import argparse
from vllm.benchmarks import serve
parser = argparse.ArgumentParser()
serve.add_cli_args(parser)
serve.main(parser.parse_args())
"""
CLIENT = (sys.executable, "-c", RUN_CLIENT)
"""`vllm bench serve`, past the command that asks for a version which CPU builds do not tell."""
FIGURES = {
    "tokens_per_second": "output_throughput",
    "ttft_ms": "median_ttft_ms",
    "tpot_ms": "median_tpot_ms",
}
"""Ours -> the client's."""


class Running(NamedTuple):
    """A server that is up."""

    label: str
    folder: Path
    url: str
    process: subprocess.Popen[bytes]
    log: Path


def start(spec: str, port: int, options: Sequence[str], log: Path) -> Running:
    """The server of `label=folder` or `label=folder={placement}`."""
    label, folder, *placement = spec.split("=", 2)
    asked = json.loads(placement[0]) if placement else {}
    words = [f"--tables={asked['tables']}"] if "tables" in asked else []
    words += [f"--rows-path={asked['path']}"] if "path" in asked else []
    line = [sys.executable, "-m", "retoken", "serve", folder, "--name=m", f"--port={port}", *words, *options]
    with log.open("wb") as out:
        process = subprocess.Popen(line, stdout=out, stderr=subprocess.STDOUT, env=os.environ)
    return Running(label, Path(folder), f"http://127.0.0.1:{port}", process, log)


def wait(server: Running, seconds: float = 400) -> None:
    """Until it answers."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if server.process.poll() is not None:
            raise SystemExit(f"{server.label}: the server went away: {server.log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(f"{server.url}/health", timeout=2):
                return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"{server.label}: not up after {seconds:.0f} s")


def ask(
    server: Running, text: Path, at_once: int, requests: int, tokens: int, seed: int, work: Path
) -> dict[str, float]:
    """One run of the client; its figures."""
    result = work / "result.json"
    result.unlink(missing_ok=True)
    line = [*CLIENT, "--backend", "openai", "--base-url", server.url, "--model", "m", "--tokenizer"]
    line += [str(server.folder), "--dataset-name", "custom", "--dataset-path", str(text), "--seed", str(seed)]
    line += ["--num-prompts", str(requests), "--max-concurrency", str(at_once), "--ignore-eos"]
    line += ["--custom-output-len", str(tokens), "--skip-chat-template", "--disable-tqdm"]
    line += ["--save-result", "--result-dir", str(work), "--result-filename", result.name]
    run = subprocess.run(line, capture_output=True, text=True, check=False)
    if run.returncode or not result.exists():
        raise SystemExit(f"{server.label}: the client failed: {run.stderr[-2000:]}")
    found = json.loads(result.read_text())
    if found["completed"] != requests:
        raise SystemExit(f"{server.label}: {found['completed']} of {requests} requests were answered")
    return {ours: found[theirs] for ours, theirs in FIGURES.items()}


def measure(servers: list[Running], asked: argparse.Namespace, work: Path) -> list[dict[str, object]]:
    """Turns over all servers and numbers of requests at once; the first turn only warms up."""
    rows: list[dict[str, object]] = []
    for turn in range(asked.repeats + 1):
        for at_once in asked.concurrency:
            requests = max(asked.least, at_once * asked.per_slot)
            for server in servers if turn % 2 else servers[::-1]:
                found = ask(server, asked.text, at_once, requests, asked.tokens, turn, work)
                row = {"label": server.label, "concurrency": at_once, "turn": turn, **found}
                print(row, flush=True)
                if turn:
                    rows.append(row)
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Ratios over the first server, medians over turns with their range, as Markdown."""
    first = rows[0]["label"] if rows else ""
    labels = list(dict.fromkeys(str(row["label"]) for row in rows))
    lines = [
        "| at once | server | throughput | TTFT | TPOT | tokens/s | TTFT, ms | TPOT, ms |",
        "|---" * 8 + "|",
    ]
    for at_once in dict.fromkeys(row["concurrency"] for row in rows):
        here = [row for row in rows if row["concurrency"] == at_once]
        base = {row["turn"]: row for row in here if row["label"] == first}
        for label in labels:
            own = [row for row in here if row["label"] == label]
            ratios = [_ratio([float(r[k]) / float(base[r["turn"]][k]) for r in own]) for k in FIGURES]  # pyright: ignore
            plain = [f"{statistics.median(float(r[k]) for r in own):.1f}" for k in FIGURES]  # pyright: ignore
            lines.append(f"| {at_once} | {label} | {' | '.join(ratios)} | {' | '.join(plain)} |")
    return "\n".join(lines)


def _ratio(found: list[float]) -> str:
    return f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})"


def main() -> None:
    """Start, measure, write, stop."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", action="append", required=True, help="label=folder[={placement}]")
    parser.add_argument("--text", type=Path, required=True, help='lines of {"prompt": …}')
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--least", type=int, default=8)
    parser.add_argument("--per-slot", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--options", nargs="*", default=[], help="of retoken serve, NAME=VALUE, for all")
    parser.add_argument("--work", type=Path, default=None, help="for logs")
    parser.add_argument("--out", type=Path, default=HERE / "throughput.csv")
    asked = parser.parse_args()
    with TemporaryDirectory(dir=asked.work) as work:
        folder = Path(work)
        options = [f"--{option}" for option in asked.options]
        servers = []
        try:
            for number, spec in enumerate(asked.server):
                servers.append(start(spec, 8100 + number, options, folder / f"server-{number}.log"))
                wait(servers[-1])
            rows = measure(servers, asked, folder)
        finally:
            for server in servers:
                server.process.terminate()
        with asked.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        print(table(rows))


if __name__ == "__main__":
    main()
