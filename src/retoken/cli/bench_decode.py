"""`retoken bench decode`: generation with rows in every placement against the plain backbone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from retoken.cli.options import as_json
from retoken.cli.tables import plain_table, print_table
from retoken.errors import ConfigError

if TYPE_CHECKING:
    from retoken.bench.decode.cases import Case
    from retoken.bench.decode.prompts import Prompt

Variant = Literal["retoken", "mort-2of4", "mort-3of5", "mort-2of4-early", "mort-2of4-delayed"]
WIDTH = 132
"""Of tables that no terminal shows."""
Where = Literal[
    "device",
    "host",
    "host-direct",
    "disk-warm",
    "disk-cold",
    "chosen-cold",
    "none-cold",
    "sync-host",
    "sync-cold",
]


@dataclass(frozen=True, kw_only=True)
class BenchDecode:
    """Time to the first token and per further token, by variant and placement, against the plain backbone.

    A preset gets random weights, and random rows for the tokens of the text; a trained checkpoint has its
    own. Prompts and what follows them are real text. One backbone's weights serve all cases, in turns.
    Placements of the same rows must give the same logits, bit for bit, or nothing is reported.
    """

    model: Annotated[str, tyro.conf.Positional] = "cpu-l"
    """A preset's name, or a trained checkpoint with token-indexed parameters."""
    data: Path
    """Token store written by `retoken prepare`; prompts are of its held-out split."""
    variants: tuple[Variant, ...] = ("retoken", "mort-2of4", "mort-3of5")
    """Of a preset; "early": the router reads the block's input, "delayed": a mixture lands a layer later."""
    placements: tuple[Where, ...] = ("device", "host", "disk-warm", "disk-cold", "sync-host", "sync-cold")
    """"warm": the file is cached; "cold": its cache is dropped before every pass; "chosen", "none": other
    ways to prefetch; "direct": a GPU reads host memory itself; "sync": the protocol of Sec. 3.3.2, with
    nothing asked for ahead, on a CPU."""
    batches: tuple[int, ...] = (1,)
    """Sequences at once."""
    prompt_lengths: tuple[int, ...] = (128,)
    """Tokens of a prompt."""
    tokens: int = 8
    """Decoded after each prompt."""
    repeats: int = 30
    """Turns; one more warms up."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of a preset's weights."""
    rows: Literal["float32", "bfloat16", "int8", "float8_e4m3"] = "bfloat16"
    """Row type of a preset's tables; on a GPU the weights'."""
    vocab_size: int = 0
    """Of a preset's backbone and tables; 0: the preset's."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the model computes. On a GPU a preset gets whole tables, which are timed resident, too."""
    kernels: Literal["eager", "triton"] = "eager"
    """What modulators on a GPU compute with."""
    passes: Literal["eager", "compiled", "graph"] = "eager"
    """By calls of the model; by calls of what `torch.compile` makes of it, on a CPU with rows in memory; or a
    further token by replays of a CUDA graph of a call, on a GPU."""
    cap: bool = False
    """Run under a memory limit that leaves a quarter of the records in use for cached pages (cgroup v1);
    of one variant in one placement, whose file is neither read before nor dropped."""
    bound: bool = False
    """Serve instead a fully written table four times the memory limit, over uniformly random tokens."""
    bound_tokens: int = 100_000
    """Of --bound."""
    bound_vocab: int = 151_936
    """Of --bound: tokens of the table, in place of the preset's."""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves PyTorch's choice."""
    work: Path | None = None
    """Folder for the packed files; without it a temporary one, in memory on some systems."""
    csv: Path | None = None
    """Write every turn there."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Measure and print; returns the exit code."""
        self._check()
        import torch

        from retoken.train import timing

        if self.threads:
            torch.set_num_threads(self.threads)
        before = timing.machine(self.threads)
        with TemporaryDirectory(prefix="retoken-decode-", dir=self.work) as folder:
            found = self._bound(Path(folder)) if self.bound else self._decode(Path(folder))
        machine = before | {"load_after": timing.machine()["load"]}
        if self.json:
            print(as_json({"machine": machine, "model": self.model, **found}))
        else:
            _show(Console() if sys.stdout.isatty() else Console(width=WIDTH), found)
            print(f"machine: {machine}")
        return 0

    def _decode(self, folder: Path) -> dict[str, Any]:
        from retoken.bench.decode import turns

        prompts = self._prompts()
        cases = self._cases([prompt for some in prompts for prompt in some], folder)
        readings: list[turns.Reading] = []
        total = len(cases) * sum(len(some) for some in prompts)
        with _progress(total) as advance, self._limit(cases, prompts[0][0]):
            for some in prompts:
                readings += turns.take(cases, some, advance, alone=self.cap)
                if self.csv is not None:
                    turns.write(self.csv, readings)
        return {"decode": [asdict(summary) for summary in turns.summarize(readings)]}

    def _prompts(self) -> list[list[Prompt]]:
        from retoken.bench.decode.prompts import cut

        size = {"count": self.repeats + 1, "following": self.tokens}
        return [
            cut(self.data, batch=batch, length=length, seed=batch, **size)
            for length in self.prompt_lengths
            for batch in self.batches
        ]

    def _cases(self, prompts: list[Prompt], folder: Path) -> list[Case]:
        from retoken import presets
        from retoken.bench.decode.cases import compiled, left_alone
        from retoken.bench.decode.passes import GraphPasses

        cases = self._of_preset(prompts, folder) if self.model in presets.names() else self._trained(folder)
        if self.cap:
            cases = [left_alone(case) for case in cases]
        if self.passes == "compiled":
            return [compiled(case) for case in cases]
        if self.passes == "graph":
            return [replace(case, passes=GraphPasses) for case in cases]
        return cases

    def _of_preset(self, prompts: list[Prompt], folder: Path) -> list[Case]:
        import torch

        from retoken import presets
        from retoken.bench.decode import cases
        from retoken.bench.decode.prompts import tokens_of

        dtype, tokens = getattr(torch, self.dtype), tokens_of(prompts)
        size, largest = self.vocab_size or presets.get(self.model).vocab_size, int(tokens.max())
        if largest >= size:
            raise ConfigError(f"--vocab-size is {size}; accepted with token {largest} of --data: above it")
        backbone = cases.random_backbone(self.model, dtype, size, self.device)
        if self.device == "cuda":
            options = {"kernels": self.kernels, "folder": folder}
            return cases.resident_cases(backbone, self.variants, self.placements, **options)
        options = {"rows": self.rows, "tokens": tokens, "folder": folder}
        return cases.preset_cases(backbone, self.variants, self.placements, **options)

    def _trained(self, folder: Path) -> list[Case]:
        import retoken
        from retoken.bench.decode import cases
        from retoken.eval import open_checkpoint

        model = open_checkpoint(self.model).model.to(self.device)  # pyright: ignore
        if self.kernels != "eager":
            retoken.use_kernels(model, self.kernels)
        return cases.trained_cases(model, self.placements, folder=folder)

    @contextmanager
    def _limit(self, cases: Sequence, prompt: Any) -> Iterator[None]:
        """Memory for what one run of each case takes, and for a quarter of the records in use."""
        if not self.cap:
            yield
            return
        from retoken.bench.decode import turns
        from retoken.bench.decode.cap import MARGIN, capped
        from retoken.bench.decode.records import drop_cache

        with capped() as cap:
            needed = cap.peak_anonymous(
                lambda: [turns.run(case, case.passes_over(prompt), prompt) for case in cases]
            )
            drop_cache([case.packed for case in cases if case.packed is not None])
            cap.limit(needed + max(case.bytes_in_use for case in cases) // 4 + MARGIN)
            yield

    def _bound(self, folder: Path) -> dict[str, Any]:
        from retoken.bench.decode.bound import serve_within

        with _progress(self.bound_tokens) as advance:
            done = 0

            def on_part(now: int) -> None:
                nonlocal done
                advance(now - done)
                done = now

            found = serve_within(
                folder,
                preset=self.model,
                variant=self.variants[0],
                rows=self.rows,
                vocab_size=self.bound_vocab,
                share=4,
                tokens=self.bound_tokens,
                on_part=on_part,
            )
        return {"bound": asdict(found)}

    def _check(self) -> None:
        lists = {"batches": self.batches, "prompt-lengths": self.prompt_lengths}
        for name, values in lists.items():
            if not values or min(values) < 1:
                raise ConfigError(f"--{name} is {list(values)}; accepted: one or more, from 1")
        for name, low in (
            ("tokens", 1),
            ("repeats", 2),
            ("threads", 0),
            ("bound_tokens", 1),
            ("bound_vocab", 64),
            ("vocab_size", 0),
        ):
            if getattr(self, name) < low:
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: from {low}"
                )
        if not self.variants or not self.placements:
            raise ConfigError("--variants or --placements is empty; accepted: one or more")
        if self.cap:
            self._check_cap()
        self._check_device()

    def _check_cap(self) -> None:
        from retoken import presets

        if self.model not in presets.names():
            raise ConfigError(f"--cap with {self.model}; accepted: a preset, whose file has any size")
        for name, values in (("variants", self.variants), ("placements", self.placements)):
            if len(values) > 1:
                raise ConfigError(f"--{name} has {len(values)}; accepted with --cap: one, alone in its limit")
        if not self.placements[0].endswith(("-warm", "-cold")):
            raise ConfigError(f"--placements is {self.placements[0]}; accepted with --cap: one of a file")

    def _check_device(self) -> None:
        import torch

        if self.device == "cpu":
            for name, only in (("kernels", self.kernels), ("passes", self.passes)):
                if only in ("triton", "graph"):
                    raise ConfigError(f"--{name} is {only} on a CPU; accepted: eager, or --device cuda")
            self._check_compiled()
        elif self.passes == "compiled":
            raise ConfigError("--passes is compiled; accepted with --device cuda: eager, graph")
        elif not torch.cuda.is_available():
            raise ConfigError("--device is cuda, and PyTorch finds no GPU; accepted: cpu")
        elif self.bound or self.cap:
            raise ConfigError("--device is cuda; accepted with --bound and --cap: cpu")

    def _check_compiled(self) -> None:
        from retoken.train.compiled import COMPILERS, has_compiler

        if self.passes != "compiled":
            return
        others = [name for name in self.placements if name not in ("device", "host")]
        if others:
            raise ConfigError(f"--placements has {others[0]}; accepted with --passes compiled: device, host")
        if not has_compiler():
            names = ", ".join(COMPILERS)
            raise ConfigError(f"--passes is compiled without a C++ compiler ({names}); accepted here: eager")


@contextmanager
def _progress(total: int) -> Iterator[Callable[..., None]]:
    """A bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda by=1: None
        return
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("decoding", total=total)
        yield lambda by=1: bar.update(task, advance=by)


def _show(console: Console, found: dict[str, Any]) -> None:
    if "bound" in found:
        console.print(_bound_table(found["bound"]))
        return
    names = ("batch", "prompt", "variant", "rows", "TPOT over plain", "TTFT over plain", "TPOT ms", "TTFT ms")
    table = plain_table(*names, title="medians, with their 95 % intervals", left=4)
    for row in found["decode"]:
        table.add_row(
            *(str(row["batch"]), str(row["prompt"]), row["variant"], row["placement"]),
            *(_ratio(row["tpot"]), _ratio(row["ttft"])),
            *(f"{row['tpot_ms']:.2f} ± {row['tpot_std_ms']:.2f}", f"{row['ttft_ms']:.1f}"),
        )
    print_table(console, table)


def _ratio(value: dict[str, float]) -> str:
    return f"{value['median']:.3f} ({value['low']:.3f} to {value['high']:.3f})"


def _bound_table(found: dict[str, Any]) -> Table:
    title = f"a table of {found['table_bytes'] / 1e6:,.0f} MB within {found['limit'] / 1e6:,.0f} MB"
    table = Table("tokens", "tok/s", "resident MB", "anonymous MB", "charged MB", title=title, box=None)
    for point in found["points"]:
        sizes = [f"{point[name] / 1e6:,.0f}" for name in ("resident", "anonymous", "charged")]
        table.add_row(f"{point['tokens']:,}", f"{point['tokens'] / point['seconds']:,.0f}", *sizes)
    return table
