"""The comparison said in words, computed from its numbers."""

from collections.abc import Iterable, Sequence

from retoken.compare.stats import Effect, mean_interval

TITLES = {
    "baseline": "baseline",
    "retoken": "ReToken",
    "mort": "MoRT",
    "additive": "additive table",
    "retoken_bigram": "ReToken by bigram",
    "retoken_both": "ReToken by token and bigram",
    "additive_both": "additive table by token and bigram",
    "mort_bigram": "MoRT by bigram",
    "value": "value embeddings",
    "per_layer": "per-layer embeddings",
    "bigram": "bigram table",
    "over_tokenized": "Over-Tokenized",
    "engram": "Engram",
    "longer": "longer training",
    "wide": "wider backbone, equal storage",
    "wider": "wider backbone, equal time",
}
MINUS = "\N{MINUS SIGN}"


def title(name: str) -> str:
    """The name a reader knows a variant by."""
    return TITLES.get(name, name)


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign, typographic minus."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{MINUS if value < 0 else '+'}{text}"


def plus_minus(values: Iterable[float], digits: int = 3, sign: str = "+") -> str:
    """Mean and half of its 95 % interval, which one value does not have; `sign` as in a format."""
    mean, half = mean_interval(values)
    return f"{mean:{sign}.{digits}f} ± {'?' if half is None else f'{half:.{digits}f}'}"


def listed(names: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *head, last = list(names)
    return f"{', '.join(head)} and {last}" if head else last


def headline(effects: Sequence[Effect]) -> str:
    """One sentence: who lowered the held-out loss, who raised it, what the seeds cannot settle."""
    if not effects:
        return "No variant has finished beside the baseline yet"
    parts = []
    for words, group in _grouped(effects):
        parts.append(f"{listed(title(e.name) for e in group)} {words}")
    return "; ".join(parts)


def _grouped(effects: Sequence[Effect]) -> list[tuple[str, list[Effect]]]:
    groups: dict[str, list[Effect]] = {}
    for effect in effects:
        groups.setdefault(_words(effect), []).append(effect)
    return list(groups.items())


def _words(effect: Effect) -> str:
    if effect.verdict == "helped":
        return "lowered the held-out loss"
    if effect.verdict == "hurt":
        return "raised the held-out loss"
    side = "below" if effect.difference.mean < 0 else "above"
    if effect.half_width is None:
        return f"ended {side} the baseline, but one seed is no verdict"
    if effect.one_sided:
        return f"ended {side} the baseline on every seed, by less than the spread can settle"
    return "made no difference that these seeds can tell from noise"


def detail(effects: Sequence[Effect]) -> str:
    """The sizes behind the headline, one clause a variant; empty without effects."""
    if not effects:
        return ""
    sizes = listed(_size(effect) for effect in effects)
    if all(effect.half_width is None for effect in effects):
        return f"Nats per held-out token against the baseline: {sizes}; one seed, so no interval"
    return f"Nats per held-out token against the baseline of the same seed: {sizes}"


def _size(effect: Effect) -> str:
    change = f"{title(effect.name)} {signed(effect.difference.mean)}"
    share = f"{signed(100 * effect.relative, 1)} %"
    if effect.half_width is None:
        return f"{change} ({share})"
    low, high = effect.difference.mean - effect.half_width, effect.difference.mean + effect.half_width
    return f"{change} ({share}; 95 % interval {signed(low)} to {signed(high)})"
