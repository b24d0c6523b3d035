"""Looking at a checkpoint: from a model, and where there is one a token store, to an `Inspection`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retoken.attach import decoder_layers
from retoken.config import MoRTConfig
from retoken.data.tokenizer import token_texts, visible
from retoken.errors import ConfigError
from retoken.eval.groups import Grouping
from retoken.eval.loading import Loaded
from retoken.eval.parts import part_grouping
from retoken.inspect import check, importance, pruning, tables
from retoken.inspect.inspection import Band, Inspection, Measured, Near, Pruning, Row, Training
from retoken.inspect.neighbours import nearest
from retoken.inspect.neutral import scales_times, without_rows, without_scales
from retoken.inspect.routing import loads
from retoken.inspect.subject import BATCH, Subject, own_modulators
from retoken.inspect.trained import Touched, touched
from retoken.nn import Modulator
from retoken.train.probe import probe

ALLOWED = (0.001, 0.01)
"""Increases of the loss, nats per token, for which it is said how many rows may go."""
SHOWN = 12
"""Tokens listed."""
Bars = Callable[[str], Callable[[int, int], None]]
"""A new bar of this name; told (done, in all)."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How closely to look."""

    checked: int = 40
    """Tokens whose rows are really zeroed, one at a time."""
    tokens: tuple[str, ...] = ()
    """Texts of single tokens whose neighbours are named; empty: the most frequent ones."""
    bars: Bars = lambda name: lambda done, total: None


def inspect(loaded: Loaded, subject: Subject | None, store: Path | None, look: Look) -> Inspection:
    """Look at a checkpoint.

    Args:
        loaded: the checkpoint.
        subject: the same with held-out windows; None: what the tables tell by themselves.
        store: what messages call the store.
        look: how closely.

    Raises:
        CheckpointError: nothing is attached whose rows could be looked into, or the checkpoint is damaged.
        ConfigError: a token that is none.
    """
    modulators = own_modulators(loaded)
    first = next(iter(modulators.values())).table
    count_V = None if subject is None else subject.count_V
    bands = tables.bands_of(count_V, first.vocab_size)
    moved = touched(Path(loaded.name), modulators, count_V)
    asked = _asked(loaded, look.tokens, count_V)
    return Inspection(
        checkpoint=loaded.name,
        modulator=loaded.model.retoken.config.to_dict(),  # pyright: ignore
        depth=len(decoder_layers(loaded.model)),
        vocab_size=first.vocab_size,
        width=first.width,
        scales={layer: tables.scale_of(module) for layer, module in modulators.items()},
        bands=tuple(_band(band) for band in bands),
        strengths={layer: tuple(tables.strengths(module, bands)) for layer, module in modulators.items()},
        training=None if moved is None else _training(moved),
        near=_near(loaded, modulators, asked, None if moved is None else moved.token_V),
        measured=None if subject is None else measure(loaded, subject, str(store), bands, look),
    )


def _band(band: tables.FrequencyBand) -> Band:
    share = None if math.isnan(band.share) else band.share
    return Band(label=band.label, tokens=len(band.ids_R), share=share)


def _training(moved: Touched) -> Training:
    never = int((~moved.token_V).sum())
    return Training(source=moved.source, never_tokens=never, never_rows=1 - moved.row_share)


def text_of(loaded: Loaded, token: int) -> str:
    """A token as people read it; its number where there is no tokenizer."""
    backend = _backend(loaded)
    return f"id {token}" if backend is None else visible(backend, token)


def _backend(loaded: Loaded) -> Any:
    """The tokenizer that knows what ids stand for; None: there is none."""
    return getattr(loaded.tokenizer, "backend_tokenizer", None)


def _asked(loaded: Loaded, texts: Sequence[str], count_V: Tensor | None) -> Tensor:
    """Ids of the tokens asked about."""
    if not texts:
        found = torch.empty(0, dtype=torch.int64) if count_V is None else count_V.argsort(descending=True)
        return found[:SHOWN]
    return torch.tensor([_single(loaded, text) for text in texts])


def _single(loaded: Loaded, text: str) -> int:
    ids = loaded.need_tokenizer()(text, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) != 1:
        raise ConfigError(
            f"--tokens: {text!r} is {len(ids)} tokens; accepted: the text of one token, its space included"
        )
    return int(ids[0])  # pyright: ignore


def _near(
    loaded: Loaded, modulators: dict[int, Modulator], asked: Tensor, among_V: Tensor | None
) -> tuple[Near, ...]:
    def near(found: Any) -> Near:
        texts = [text_of(loaded, token) for token in found.ids]
        return Near(token=text_of(loaded, found.id), near=tuple(zip(texts, found.cosines, strict=True)))

    if not len(asked):
        return ()
    return tuple(near(found) for found in nearest(modulators.values(), asked, among_V))


def measure(
    loaded: Loaded, subject: Subject, store: str, bands: list[tables.FrequencyBand], look: Look
) -> Measured:
    """What held-out text tells."""
    every, before = subject.modulators.values(), subject.loss()
    bar, total = look.bars("layers and bands"), len(subject.modulators) + len(bands)
    without_layer: dict[int, float] = {}
    for layer, module in subject.modulators.items():
        with without_scales([module]):
            without_layer[layer] = subject.loss() - before
        bar(len(without_layer), total)
    without_band: list[float] = []
    for band in bands:
        with without_rows(every, band.ids_R):
            without_band.append(subject.loss() - before)
        bar(len(without_layer) + len(without_band), total)
    with without_scales(every):
        without_all = subject.loss() - before
    found = importance.estimate(subject)
    checked = check.check(subject, found, look.checked, look.bars("rows"))
    return Measured(
        store=store,
        looked_tokens=subject.looked_NW[:, 1:].numel(),
        measured_tokens=subject.measured_tokens,
        loss=before,
        without_all=without_all,
        without_layer=without_layer,
        without_band=tuple(without_band),
        hidden_std=_hidden_std(subject),
        loads=loads(subject, bands, _parts(loaded, subject)),
        first_total=found.first_V.sum().item() / found.count_V.sum().item(),
        path_total=found.path_V.sum().item() / found.count_V.sum().item(),
        checked=_rows(loaded, found, checked.ids_R, checked.real_R),
        first_rank=checked.first_rank,
        path_rank=checked.path_rank,
        worth_most=_rows(loaded, found, _worth_most(found)),
        pruning=_pruning(subject, found, before, look.bars),
    )


def _parts(loaded: Loaded, subject: Subject) -> Grouping | None:
    """Parts of the vocabulary; None where nothing is routed, or no tokenizer tells."""
    backend = _backend(loaded)
    if backend is None or not isinstance(subject.config, MoRTConfig):
        return None
    return part_grouping(token_texts(backend, subject.vocab_size))


def _rows(
    loaded: Loaded, found: importance.Estimate, ids_R: Tensor, real_R: Tensor | None = None
) -> tuple[Row, ...]:
    def row(place: int, token: int) -> Row:
        count = int(found.count_V[token])
        return Row(
            token=text_of(loaded, token),
            count=count,
            first=found.first_V[token].item() / count,
            path=found.path_V[token].item() / count,
            real=None if real_R is None else real_R[place].item() / count,
        )

    return tuple(row(place, token) for place, token in enumerate(ids_R.tolist()))


def _worth_most(found: importance.Estimate) -> Tensor:
    """Tokens that were seen, the highest `shrunk_V` first."""
    worth = torch.where(found.count_V > 0, found.shrunk_V(), -torch.inf)
    return worth.topk(min(SHOWN, int((found.count_V > 0).sum()))).indices


def _hidden_std(subject: Subject) -> dict[str, dict[int, float]]:
    """By setting: as it is, without any rows, and for MoRT without the factor 1 / sqrt(2 N_l) (Fig. 9)."""
    ids = subject.looked_NW[:BATCH, :-1].to(subject.model.device)

    def now() -> dict[int, float]:
        found = probe(subject.model, ids, subject.dtype)["hidden_std"]
        return {int(depth): value for depth, value in found.items()}

    every, stds = subject.modulators.values(), {"as trained": now()}
    with without_scales(every):
        stds["without rows"] = now()
    if isinstance(subject.config, MoRTConfig):
        with scales_times(every, math.sqrt(2 * len(decoder_layers(subject.model)))):
            stds["without 1/√(2N)"] = now()
    return stds


def _pruning(subject: Subject, found: importance.Estimate, before: float, bars: Bars) -> Pruning:
    order_V = pruning.by_importance(subject, found)
    orders = {
        "importance": order_V,
        "frequency": pruning.by_frequency(subject),
        "random": pruning.at_random(subject),
    }
    curve = pruning.curve(subject, orders, before, on_progress=bars("pruning"))
    allowed = []
    for nats in ALLOWED:
        kept, increase = pruning.fewest(subject, order_V, nats, before)
        allowed.append((nats, subject.vocab_size - kept, increase))
    return Pruning(shares=curve.shares, increases=curve.increases, allowed=tuple(allowed))
