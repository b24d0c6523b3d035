"""A comparison's folder: whose it is, which runs belong to it, and what they came to.

``compare.json`` says what was asked for; ``runs/`` holds one run folder each; ``results.json``,
``curves.csv`` and ``report.html`` are made from those and can be made again.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from retoken.checkpoint.files import atomic_file, read_json, write_json
from retoken.compare.runs import Curve, Run, is_finished, read_run
from retoken.errors import CheckpointError, ConfigError

FORMAT_VERSION = 1
COLUMNS = ("name", "seed", "kind", "step", "tokens", "flops", "seconds", "loss", "bits_per_byte")


class RunKey(NamedTuple):
    """A run's place in the comparison."""

    name: str
    seed: int

    @property
    def label(self) -> str:
        """Name of its folder."""
        return f"{self.name}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What was asked for, and the runs that have finished."""

    folder: Path
    recipe: Mapping[str, Any]
    planned: tuple[RunKey, ...]
    runs: tuple[Run, ...]
    command: str
    environment: Mapping[str, Any]
    counts: Mapping[str, Mapping[str, float]]
    """What `retoken presets` counts for each variant."""

    @property
    def missing(self) -> list[RunKey]:
        """Runs asked for that have not finished."""
        done = {(run.record.name, run.record.seed) for run in self.runs}
        return [key for key in self.planned if key not in done]


class CompareFolder:
    """Paths of one comparison."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = path / "compare.json"
        self.results = path / "results.json"
        self.curves = path / "curves.csv"
        self.report = path / "report.html"

    def run(self, key: RunKey) -> Path:
        """The folder of one run."""
        return self.path / "runs" / key.label

    def planned(self) -> list[RunKey]:
        """The runs asked for so far."""
        runs = _manifest(self.manifest)["runs"] if self.manifest.is_file() else []
        return [RunKey(run["name"], run["seed"]) for run in runs]

    def claim(self, recipe: Mapping[str, Any], keys: Sequence[RunKey], **about: Any) -> None:
        """Make the folder this comparison's, or go on in it.

        Seeds and variants may be added; the recipe may not change.

        Args:
            recipe: What every run shares; JSON-able.
            keys: The runs asked for now; earlier ones stay.
            **about: ``command``, ``environment`` and ``counts``: said on the page, free to differ.

        Raises:
            ConfigError: It holds another comparison (the first differing option is named) or something else.
        """
        known = self.planned()
        if self.manifest.exists():
            found = _manifest(self.manifest)
            recipe, about = _merged(self.manifest, found, recipe, about)
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise ConfigError(
                f"out {self.path} holds something else than a comparison; "
                "accepted: a new or empty folder, or this comparison's"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        runs = [key._asdict() for key in dict.fromkeys([*known, *keys])]
        write_json(
            self.manifest,
            {"type": "comparison", "format_version": FORMAT_VERSION, "recipe": recipe, "runs": runs, **about},
        )

    def load(self) -> Comparison:
        """Everything that has finished so far.

        Raises:
            ConfigError: No comparison is there.
            CheckpointError: A file of it, or of a finished run, is broken; it is named.
        """
        if not self.manifest.is_file():
            raise ConfigError(
                f"{self.path} holds no comparison (no compare.json); "
                "accepted: the --out of an earlier `retoken compare`"
            )
        found = _manifest(self.manifest)
        planned = tuple(self.planned())
        done = [key for key in planned if is_finished(self.run(key))]
        return Comparison(
            folder=self.path,
            recipe=found["recipe"],
            planned=planned,
            runs=tuple(read_run(self.run(key), name=key.name, seed=key.seed) for key in done),
            command=found["command"],
            environment=found["environment"],
            counts=found["counts"],
        )

    def write_results(self, comparison: Comparison) -> None:
        """``results.json`` and ``curves.csv``, each atomically."""
        variants = list(dict.fromkeys(key.name for key in comparison.planned))
        seeds = sorted({key.seed for key in comparison.planned})
        recipe = {**comparison.recipe, "variants": variants, "seeds": seeds}
        records = [asdict(run.record) for run in comparison.runs]
        write_json(self.results, {"format_version": FORMAT_VERSION, "recipe": recipe, "runs": records})
        with atomic_file(self.curves) as partial:
            partial.write_text(_csv(comparison.runs), encoding="utf-8")


def _manifest(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if found.get("type") != "comparison" or found.get("format_version") != FORMAT_VERSION:
        kind = f"type {found.get('type')!r}, format_version {found.get('format_version')!r}"
        raise CheckpointError(f"{path}: {kind}; accepted: type 'comparison', format_version {FORMAT_VERSION}")
    missing = [name for name in ("recipe", "runs", "command", "environment", "counts") if name not in found]
    if missing:
        raise CheckpointError(
            f"{path}: {missing[0]} is missing; the file is not what `retoken compare` writes"
        )
    return found


def _merged(
    path: Path, found: Mapping[str, Any], recipe: Mapping[str, Any], about: dict[str, Any]
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The recipe with the modulators of variants asked for earlier; what both say must agree."""
    there, here = found["recipe"], dict(recipe)
    both = {name: value for name, value in recipe["modulators"].items() if name in there["modulators"]}
    mine = {name: there["modulators"][name] for name in both}
    _refuse_other(path, {**there, "modulators": mine}, {**here, "modulators": both})
    here["modulators"] = {**there["modulators"], **recipe["modulators"]}
    return here, {**about, "counts": {**found["counts"], **about["counts"]}}


def _refuse_other(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    found, wanted = flat(there), flat(here)
    for name in dict.fromkeys([*wanted, *found]):
        if found.get(name) != wanted.get(name):
            raise ConfigError(
                f"{path} belongs to a comparison with {name.removeprefix('train.')} {found.get(name)!r}, "
                f"not {wanted.get(name)!r}; choose another out, or that value"
            )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, keys joined by dots; tuples and lists compare alike."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = list(value) if isinstance(value, tuple) else value
    return result


def _csv(runs: Iterable[Run]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in runs:
        for kind, curve in (("train", run.train), ("eval", run.evals)):
            writer.writerows(_rows(run, kind, curve))
    return text.getvalue()


def _rows(run: Run, kind: str, curve: Curve) -> Iterable[tuple[Any, ...]]:
    head = (run.record.name, run.record.seed, kind)
    columns = (curve.step, curve.tokens, curve.flops, curve.seconds, curve.loss, curve.bits_per_byte)
    for step, tokens, flops, seconds, loss, bits in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        yield (
            *head,
            int(step),
            int(tokens),
            f"{flops:.6g}",
            f"{seconds:.3f}",
            repr(loss),
            "" if bits != bits else repr(bits),
        )
