"""Sentences of the page, each computed from the comparison: what was run, what it cost, what stays open."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retoken.compare.folder import Comparison
from retoken.compare.runs import Curve
from retoken.compare.stats import BASELINE, Effect
from retoken.compare.verdict import listed, signed, title
from retoken.report.curves import Groups
from retoken.report.depth import Load
from retoken.report.series import Band, band, reached
from retoken.report.words import quantity, seconds

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def counted(number: int, noun: str) -> str:
    """``two seeds``."""
    word = _NUMBERS[number] if number < len(_NUMBERS) else str(number)
    return f"{word} {noun}{'' if number == 1 else 's'}"


def setting(comparison: Comparison) -> str:
    """What was trained, in a line."""
    seeds = counted(len({key.seed for key in comparison.planned}), "seed")
    parts = [f"preset {comparison.recipe.get('preset', '?')}", seeds]
    if comparison.runs:
        record = comparison.runs[0].record
        parts.insert(1, f"{quantity(record.backbone_params)} backbone parameters")
        parts.insert(2, f"{quantity(record.tokens)} training tokens a run")
    return " · ".join(parts)


def savings(groups: Groups) -> list[str]:
    """Where each variant came down to the baseline's final held-out loss, in tokens and in seconds."""
    base = {
        axis: band([run.evals for run in groups.get(BASELINE, [])], axis) for axis in ("tokens", "seconds")
    }
    others = [name for name in groups if name != BASELINE]
    found = [_saving(name, [run.evals for run in groups[name]], base) for name in others]
    return [sentence for sentence in found if sentence]


def _saving(name: str, curves: Sequence[Curve], base: Mapping[str, Band | None]) -> str | None:
    shares = {}
    for axis, reference in base.items():
        ours = band(curves, axis)
        if ours is None or reference is None:
            return None
        at = reached(ours, float(reference.mean[-1]))
        if at is None:
            return f"{title(name)} did not come down to the baseline's final held-out loss."
        shares[axis] = at / float(reference.x[-1])
    return (
        f"{title(name)} reached the baseline's final held-out loss after {100 * shares['tokens']:.0f} % "
        f"of the tokens and {100 * shares['seconds']:.0f} % of the baseline's training time."
    )


def costs(effects: Sequence[Effect], groups: Groups) -> list[str]:
    """What each variant stores and how fast it trains, beside the baseline."""
    if BASELINE not in groups:
        return []
    base = groups[BASELINE][0].record
    sentences = []
    for effect in effects:
        ours = groups[effect.name][0].record
        flops = 100 * (ours.flops_per_token / base.flops_per_token - 1)
        sentences.append(
            f"{title(effect.name)} stores {ours.stored_params / base.stored_params:.2f} times the "
            f"baseline's parameters, changes FLOPs per token by {signed(flops, 2)} % and trains at "
            f"{effect.speed:.2f} times its tokens per second."
        )
    return sentences


def depth_words(groups: Groups) -> list[str]:
    """Where the scales ended largest and smallest."""
    return [sentence for name in groups if (sentence := _scales(name, groups))]


def _scales(name: str, groups: Groups) -> str | None:
    probes = [[probe.scale_mean for probe in run.probes if probe.scale_mean] for run in groups[name]]
    probes = [found for found in probes if found]
    if not probes:
        return None
    mean = {layer: float(np.mean([found[-1][layer] for found in probes])) for layer in probes[0][-1]}
    start = float(np.mean(list(probes[0][0].values())))
    high, low = max(mean, key=lambda layer: mean[layer]), min(mean, key=lambda layer: mean[layer])
    return (
        f"{title(name)} started at {signed(start, 2).lstrip('+')} in every layer and ended between "
        f"{signed(mean[low]).lstrip('+')} ({_at(low)}) and {signed(mean[high]).lstrip('+')} ({_at(high)})."
    )


def load_words(load: Load) -> str:
    """How even the router's choices are."""
    low, high = load.lowest, load.highest
    return (
        f"Even use would give each modulator {100 * load.even:.1f} %. "
        f"{title(load.name)} ended between {100 * low[0]:.1f} % ({_at(*low[1:])}) "
        f"and {100 * high[0]:.1f} % ({_at(*high[1:])})."
    )


def _at(layer: int, modulator: int | None = None) -> str:
    """A place in depth, its words kept on one line."""
    words = f"layer\N{NO-BREAK SPACE}{layer}"
    return words if modulator is None else f"{words}, modulator\N{NO-BREAK SPACE}{modulator}"


def caveats(comparison: Comparison, effects: Sequence[Effect]) -> list[str]:
    """What these numbers cannot show, from the facts of this very comparison."""
    if not comparison.runs:
        return []
    found = [_seeds(comparison), _size(comparison), *_stored(comparison, effects), *_data(comparison)]
    if comparison.recipe.get("train", {}).get("schedule") in ("cosine", "wsd"):
        found.append(
            "The learning rate decays towards the end of every run. A loss before the end is that of an "
            "unfinished schedule, so a point on a curve is not what a shorter run would have reached."
        )
    together = comparison.environment.get("jobs", 1)
    beside = f", {together} runs at once" if together > 1 else ""
    found.append(
        f"Seconds and tokens per second are those of one machine ({machine(comparison.environment)}{beside}) "
        "and of whatever else it was doing; they leave out evaluation and checkpoints."
    )
    return found


def _seeds(comparison: Comparison) -> str:
    seeds = len({run.record.seed for run in comparison.runs})
    if seeds == 1:
        return "One seed was run. Nothing here tells a difference between variants from one between seeds."
    few = " With so few runs they are rough themselves." if seeds < 5 else ""
    return (
        f"{counted(seeds, 'seed').capitalize()} were run. The intervals assume that the noise between seeds "
        f"is alike in all variants.{few}"
    )


def _size(comparison: Comparison) -> str:
    record = comparison.runs[0].record
    return (
        f"The backbone has {quantity(record.backbone_params)} parameters, embeddings included, and saw "
        f"{record.tokens / record.backbone_params:.1f} tokens a parameter. The paper trains backbones of "
        "190 M to 3 B parameters on 100 B to 500 B tokens; an effect at this size need not carry over to "
        "that one."
    )


def _stored(comparison: Comparison, effects: Sequence[Effect]) -> list[str]:
    stored = {run.record.name: run.record.stored_params for run in comparison.runs}
    if BASELINE not in stored or not effects:
        return []
    shares = listed(f"{stored[e.name] / stored[BASELINE]:.1f} times for {title(e.name)}" for e in effects)
    return [
        "All variants train on the same tokens at nearly the same FLOPs, but they do not store the same "
        f"number of parameters: the tables bring that to {shares}. A baseline made larger until it stores as "
        "much is not part of this comparison."
    ]


def _data(comparison: Comparison) -> list[str]:
    data = comparison.recipe.get("data", {})
    found = [f"On the corpus: {note.rstrip('.')}." for note in data.get("notes", [])]
    epochs = comparison.runs[0].record.tokens / (data.get("train_tokens") or float("inf"))
    if epochs > 1.05:
        found.append(
            f"The corpus has {quantity(data['train_tokens'])} training tokens, so every run read it "
            f"{epochs:.1f} times. Tables can memorise what a larger corpus would not let them."
        )
    return found


def machine(environment: Mapping[str, Any]) -> str:
    """The machine in a phrase."""
    where = environment.get("gpu") or environment.get("cpu") or "unknown processor"
    cores = environment.get("cores")
    return f"{where}, {counted(cores, 'core')}" if cores else str(where)


def total_time(comparison: Comparison) -> str:
    """Training time of all runs together."""
    return seconds(sum(run.record.train_seconds for run in comparison.runs))
