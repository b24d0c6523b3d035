"""What `retoken inspect` prints."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retoken.inspect import Inspection
    from retoken.inspect.inspection import Measured
    from retoken.inspect.routing import PartLoad


def lines_of(found: Inspection) -> list[str]:
    """The inspection in lines."""
    tokens = f"{found.vocab_size:,} tokens, {len(found.scales)} of {found.depth} layers"
    lines = [f"{found.checkpoint}: {found.variant}, {tokens}"]
    if found.training is not None:
        never = found.training
        lines.append(
            f"  never trained   {never.never_tokens:,} tokens, {100 * never.never_rows:.1f} % of all rows, "
            f"by {never.source}"
        )
    lines += _by_layer(found)
    for near in found.near:
        shown = ", ".join(f"{text} {cosine:.2f}" for text, cosine in near.near)
        lines.append(f"  near {near.token:12} {shown}")
    if found.measured is None:
        return [*lines, "  losses not measured: --data STORE measures them"]
    return lines + _measured(found, found.measured)


def _by_layer(found: Inspection) -> list[str]:
    costs = {} if found.measured is None else found.measured.without_layer
    loads = {} if found.measured is None else found.measured.loads
    head = f"  {'layer':>5}{'mean s':>9}{'mean |s|':>10}{'spread':>8}{'rms p-1':>9}"
    head += f"{'loss without':>14}" if costs else ""
    head += f"{'effective':>11}{'weighing':>10}" if loads else ""
    lines = [head]
    for layer, scale in found.scales.items():
        distance = found.strengths[layer][0].distance
        line = f"  {layer:>5}{scale.mean:>9.3f}{scale.abs_mean:>10.3f}{scale.std:>8.3f}{distance:>9.3f}"
        line += f"{costs[layer]:>+14.4f}" if costs else ""
        line += f"{loads[layer].effective:>11.2f}{loads[layer].weighing:>10.2f}" if loads else ""
        lines.append(line)
    return lines


def _by_part(measured: Measured) -> list[str]:
    """How each part of the vocabulary is routed, means over layers."""
    found: dict[str, list[PartLoad]] = {}
    for load in measured.loads.values():
        for label, part in load.by_part.items():
            found.setdefault(label, []).append(part)
    return [
        f"  choices, {label:>12} ({each[0].positions:,} positions): {fmean(x.effective for x in each):.2f} "
        f"effective, {fmean(x.apart for x in each):.2f} apart from all"
        for label, each in found.items()
    ]


def _measured(found: Inspection, measured: Measured) -> list[str]:
    lines = [
        f"  held-out loss   {measured.loss:.4f} nats per token on {measured.measured_tokens:,} tokens of "
        f"{measured.store}; without all rows {measured.without_all:+.4f}"
    ]
    for band, increase in zip(found.bands, measured.without_band, strict=True):
        share = "" if band.share is None else f", {100 * band.share:.1f} % of the text"
        lines.append(f"  without ranks {band.label:>14} ({band.tokens:,} tokens{share}): {increase:+.4f}")
    lines += _by_part(measured)
    lines.append(
        f"  estimates, {len(measured.checked)} tokens really zeroed: rank correlation "
        f"{measured.first_rank:.2f} to first order, {measured.path_rank:.2f} along the path"
    )
    for nats, gone, increase in measured.pruning.allowed:
        share = 100 * gone / found.vocab_size
        lines.append(f"  for +{nats:g} nats rows of {gone:,} tokens ({share:.1f} %) may go: {increase:+.4f}")
    return lines
