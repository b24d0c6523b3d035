"""The page: everything it shows gathered into one dict, then poured into the template."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from retoken.checkpoint.files import atomic_file
from retoken.compare.folder import CompareFolder, Comparison, flat
from retoken.compare.runs import Run, RunRecord
from retoken.compare.stats import BASELINE, Effect, bits_spread, effects, spread
from retoken.compare.verdict import MINUS, detail, headline, signed, title
from retoken.report import curves, depth, facts, palette, tokens, words
from retoken.report.curves import Groups
from retoken.report.series import by_variant
from retoken.report.vocabulary import decoder


def write_report(folder: CompareFolder, comparison: Comparison) -> Path:
    """Render ``report.html`` of a comparison, atomically.

    Args:
        folder: Where the page goes.
        comparison: What it shows; runs may be missing.

    Returns:
        The page.
    """
    html = render(comparison)
    with atomic_file(folder.report) as partial:
        partial.write_text(html, encoding="utf-8")
    return folder.report


def render(comparison: Comparison) -> str:
    """The page as HTML: one file, nothing loaded from elsewhere."""
    return pour("page.html", gather(comparison))


def pour(template: str, gathered: Mapping[str, Any]) -> str:
    """A template of this room with everything it names, in the style that all pages share."""
    environment = Environment(
        loader=PackageLoader("retoken.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"title": title, "signed": signed, "w": words, "minus": MINUS}
    environment.filters |= {"signed": signed, "compact": words.compact}
    return environment.get_template(template).render(**gathered, style=_style(environment))


def _style(environment: Environment) -> Markup:
    light, dark = palette.css_variables(dark=False), palette.css_variables(dark=True)
    return Markup(environment.get_template("page.css").render(light=Markup(light), dark=Markup(dark)))


def gather(comparison: Comparison) -> dict[str, Any]:
    """Everything the template names."""
    groups = by_variant(comparison.runs)
    found = effects([run.record for run in comparison.runs])
    names = list(groups)
    decode = decoder(comparison.runs)
    reports = tokens.token_reports(groups, decode) if decode else []
    return {
        "headline": headline(found),
        "detail": detail(found),
        "setting": facts.setting(comparison),
        "missing": [key.label for key in comparison.missing],
        "planned": len(comparison.planned),
        "names": names,
        "attached": [name for name in names if name != BASELINE],
        "val_tokens": comparison.runs[0].val_tokens if comparison.runs else 0,
        "series": curves.order(names),
        "results": [_result(name, groups, found) for name in names],
        "effect": curves.effect_panel(found, names),
        "losses": curves.loss_panels(groups),
        "difference": curves.difference_panel(groups),
        "savings": facts.savings(groups),
        "costs": facts.costs(found, groups),
        "cost_rows": [_cost(name, groups, _activated(name, comparison), found) for name in names],
        "scales": depth.scale_panels(groups),
        "scale_words": facts.depth_words(groups),
        "stds": depth.std_panels(groups),
        "loads": [(load, facts.load_words(load)) for load in depth.loads(groups)],
        "tokens": reports,
        "bands": tokens.band_panels(reports, names),
        "samples": _samples(groups),
        "caveats": facts.caveats(comparison, found),
        "command": comparison.command,
        "machine": facts.machine(comparison.environment),
        "environment": comparison.environment,
        "total_time": facts.total_time(comparison),
        "recipe": _recipe(comparison.recipe),
    }


def _result(name: str, groups: Groups, found: Sequence[Effect]) -> dict[str, Any]:
    records = [run.record for run in groups[name]]
    return {
        "name": name,
        "loss": spread(record.val_loss for record in records),
        "bits": bits_spread(records),
        "seeds": sorted((record.seed, record.val_loss) for record in records),
        "effect": next((effect for effect in found if effect.name == name), None),
    }


def _activated(name: str, comparison: Comparison) -> float | None:
    """Parameters a token uses: the backbone's, scales and routers, and of the tables its K rows a layer."""
    counts, vocabulary = comparison.counts.get(name), comparison.recipe.get("data", {}).get("vocab_size")
    if not counts or not vocabulary:
        return None
    rows = counts["rho"] * counts["table_params"] / vocabulary
    return counts["activated_params"] + counts["other_params"] + rows


def _cost(name: str, groups: Groups, activated: float | None, found: Sequence[Effect]) -> dict[str, Any]:
    def mean(runs: Sequence[Run], value: Callable[[Run], float]) -> float:
        return spread(map(value, runs)).mean

    runs, record = groups[name], groups[name][0].record
    base = groups.get(BASELINE)
    fields: dict[str, Callable[[RunRecord], float]] = {
        "stored": lambda r: r.stored_params,
        "flops": lambda r: r.flops_per_token,
        "seconds": lambda r: r.train_seconds,
        "speed": lambda r: r.tokens_per_second,
        "memory": lambda r: r.peak_memory_bytes,
    }
    values = {key: mean(runs, lambda run, read=read: read(run.record)) for key, read in fields.items()}
    ratios = {}
    if base and name != BASELINE:
        ratios = {
            k: values[k] / mean(base, lambda run, read=read: read(run.record)) for k, read in fields.items()
        }
    # Speed is compared within a seed, as everywhere else.
    ratios.update(("speed", effect.speed) for effect in found if effect.name == name)
    return {
        "name": name,
        "backbone": record.backbone_params,
        "activated": activated,
        "table": record.table_params,
        "start_memory": mean(runs, lambda run: run.start_memory_bytes),
        **values,
        "ratios": ratios,
    }


def _samples(groups: Groups) -> list[dict[str, Any]]:
    """By prompt: the text that followed, and what each variant wrote (its first seed that kept samples)."""
    first = {
        name: next((found for run in runs if (found := run.samples())), []) for name, runs in groups.items()
    }
    prompts: dict[str, dict[str, Any]] = {}
    for name, samples in first.items():
        for sample in samples:
            entry = prompts.setdefault(sample["prompt"], {**sample, "texts": {}})
            entry["texts"][name] = sample
    return list(prompts.values())


def _recipe(recipe: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The recipe in groups of option and value, as the page's last table lists it."""
    train = {
        name: value
        for name, value in recipe.get("train", {}).items()
        if name not in ("type", "format_version")
    }
    groups = {"Training": train, "Data": recipe.get("data", {}), **{
        title(name): {k: v for k, v in (found or {}).items() if k not in ("type", "format_version")}
        for name, found in recipe.get("modulators", {}).items()
    }}  # fmt: skip
    return [
        (name, [(k, _shown(v)) for k, v in flat(values).items()]) for name, values in groups.items() if values
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}…"  # a hash; results.json has it in full
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
