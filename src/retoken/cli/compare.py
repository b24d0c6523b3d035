"""`retoken compare`: the main job, baseline and variants under one recipe."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from retoken import presets
from retoken.cli.compare_view import View, print_summary
from retoken.cli.options import as_json
from retoken.compare.config import CompareConfig
from retoken.compare.folder import CompareFolder, Comparison, RunKey
from retoken.compare.stats import effects
from retoken.compare.verdict import headline
from retoken.config import MoRTConfig, ReTokenConfig
from retoken.errors import ConfigError

# Options of the command that are no options of a training run.
_OWN = (
    *("preset", "out", "data", "variants", "seeds", "retoken", "mort"),
    *("size", "wide", "jobs", "device", "threads", "json", "report_only"),
)


@dataclass(frozen=True, kw_only=True)
class Compare:
    """The main job: train the backbone plain, with ReToken and with MoRT under one recipe, and report.

    Runs that have finished are not run again and interrupted ones go on, so the same command can be given
    until all is done. Options of the recipe stand in for the preset's, in every run alike.
    """

    preset: Annotated[str, tyro.conf.Positional] = ""
    """Backbone by preset name; `retoken presets` lists them."""
    variants: tuple[str, ...] = ("baseline", "retoken", "mort")
    """Which variants: baseline, retoken, mort, and rivals: additive, retoken_bigram, retoken_both,
    additive_both, mort_bigram, value, per_layer, bigram, over_tokenized, engram, wide."""
    seeds: tuple[int, ...] = (0, 1)
    """Each variant is trained once on each seed; a seed is one data order and one start of the backbone."""
    data: Path | None = None
    """Token store written by `retoken prepare`; without it the default corpus is prepared into the cache."""
    out: Path | None = None
    """Folder of the comparison; without it out/compare-PRESET."""
    size: float = 1.0
    """Numbers in the tables of rivals over those of ReToken."""
    wide: str = ""
    """Preset of the variant "wide", a plain backbone of another width."""
    jobs: int = 1
    """Runs at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; "auto": a GPU where there is one."""
    threads: int = 0
    """CPU threads of a run; 0: the machine's cores over `jobs`."""
    json: bool = False
    """Print the results and the summary as one JSON object."""
    report_only: Path | None = None
    """Train nothing: write results.json, curves.csv and report.html of this folder again from its runs."""

    tokens: int | None = None
    """Training tokens of a run."""
    steps: int | None = None
    """Optimizer steps of a run, in place of `tokens`."""
    batch_size: int | None = None
    """Sequences per optimizer step."""
    micro_batch_size: int | None = None
    """Sequences per forward pass; a smaller one saves memory."""
    context_length: int | None = None
    """Tokens per sequence."""
    lr: float | None = None
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd", "ws"] | None = None
    """Learning-rate schedule."""
    weight_decay: float | None = None
    """AdamW's decay of matrices."""
    table_lr_mult: float | None = None
    """Learning rate of the token tables over `lr`."""
    table_weight_decay: float | None = None
    """Decay of the token tables."""
    scale_lr_mult: float | None = None
    """Learning rate of the scales over `lr`."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of forward and backward."""
    compile: Literal["auto", "on", "off"] | None = None
    """torch.compile."""
    eval_every: int | None = None
    """Steps between evaluations on held-out text."""
    eval_tokens: int | None = None
    """Held-out tokens per evaluation; 0: all of them."""
    checkpoint_every: int | None = None
    """Steps between checkpoints."""
    retoken: ReTokenConfig = field(default_factory=ReTokenConfig)
    """How ReToken is attached."""
    mort: MoRTConfig = field(default_factory=MoRTConfig)
    """How MoRT is attached."""

    def run(self) -> int:
        """Train, report, print; returns the exit code."""
        if self.report_only is not None:
            return self._report(self.report_only)
        if not self.preset:
            raise ConfigError(f"preset is missing; accepted: {', '.join(presets.names())}")
        from retoken.compare.job import compare

        out = self.out or Path("out") / f"compare-{self.preset}"
        config = self._config(out, self.data or Path("."))
        folder = CompareFolder(out)
        if self.data is None:
            config = self._config(out, _default_data(self.preset))
        with View() as view:
            comparison = compare(
                config,
                command=self._command,
                on_event=view.event,
                on_results=lambda found: _write(folder, found),
            )
        return self._print(folder, comparison)

    def _report(self, path: Path) -> int:
        folder = CompareFolder(path)
        comparison = folder.load()
        folder.write_results(comparison)
        _write(folder, comparison)
        return self._print(folder, comparison)

    def _print(self, folder: CompareFolder, comparison: Comparison) -> int:
        if self.json:
            found = effects([run.record for run in comparison.runs])
            summary = {"headline": headline(found), "effects": [asdict(effect) for effect in found]}
            runs = [asdict(run.record) for run in comparison.runs]
            missing = [key.label for key in comparison.missing]
            print(
                as_json({"summary": summary, "runs": runs, "missing": missing, "report": str(folder.report)})
            )
        else:
            print_summary(comparison, folder.report)
        return 0

    def _config(self, out: Path, data: Path) -> CompareConfig:
        recipe = {
            f.name: value
            for f in fields(self)
            if f.name not in _OWN and (value := getattr(self, f.name)) is not None
        }
        return CompareConfig(
            preset=presets.get(self.preset).name,
            out=out,
            data=data,
            variants=self.variants,
            seeds=self.seeds,
            retoken=self.retoken,
            mort=self.mort,
            size=self.size,
            wide=presets.get(self.wide).name if self.wide else "",
            recipe=recipe,
            jobs=self.jobs,
            device=self.device,
            threads=self.threads,
        )

    def _command(self, keys: Sequence[RunKey]) -> str:
        """The command that gives this comparison, with every run the folder has been asked for."""
        words = ["retoken", "compare", self.preset, "--variants", *dict.fromkeys(key.name for key in keys)]
        words += ["--seeds", *map(str, sorted({key.seed for key in keys}))]
        default = Compare()
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name in ("preset", "variants", "seeds", "json", "report_only") or value == getattr(
                default, option.name
            ):
                continue
            if isinstance(value, ReTokenConfig | MoRTConfig):
                words += _nested(option.name, value)
            else:
                words += [_flag(option.name), str(value)]
        return shlex.join(words)


def _nested(name: str, value: ReTokenConfig | MoRTConfig) -> list[str]:
    words: list[str] = []
    for option in fields(value):
        found = getattr(value, option.name)
        if found != getattr(type(value)(), option.name):
            values = map(str, found) if isinstance(found, tuple) else [str(found)]
            words += [_flag(f"{name}.{option.name}"), *values]
    return words


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _default_data(preset: str) -> Path:
    """The default corpus with a vocabulary of the preset's size, prepared once for all comparisons."""
    from retoken.cli.prepare import Bar
    from retoken.data.config import PrepareConfig
    from retoken.data.manifest import MANIFEST
    from retoken.data.packages import cache_folder
    from retoken.data.prepare import prepare

    size = presets.get(preset).vocab_size
    out = cache_folder() / "stores" / f"default-{size}"
    known = (out / MANIFEST).exists()
    with Bar() as bar:
        bar.note(f"no --data given: the default corpus, with a vocabulary of {size}, in {out}")
        manifest = prepare(PrepareConfig(out=out, corpus="default", vocab_size=size), bar)
        for text in manifest.notes if known else ():  # a new preparation has said them itself
            bar.note(text)
    return out


def _write(folder: CompareFolder, comparison: Comparison) -> Any:
    from retoken.report.page import write_report

    return write_report(folder, comparison)
