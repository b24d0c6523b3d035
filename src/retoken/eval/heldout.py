"""Held-out loss and bits per byte of a checkpoint, by the same sums that training reports."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from retoken.errors import ConfigError
from retoken.eval.loading import Loaded
from retoken.eval.material import Material, check_fit, store_material, text_material
from retoken.train.evaluate import Evaluation, Observer, evaluate
from retoken.train.world import World

DEFAULT_CONTEXT = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """How well a model predicts a text."""

    val_loss: float
    """Nats per token."""
    val_bits_per_byte: float
    """Bits per byte of the predicted text: comparable between tokenizers."""
    perplexity: float
    """exp(val_loss)."""
    tokens: int
    """Tokens predicted."""
    bytes: int
    """UTF-8 bytes of the text they stand for."""
    context_length: int
    """Tokens a prediction could look back on, at most."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return asdict(self)


def evaluate_store(
    loaded: Loaded,
    folder: Path,
    world: World,
    *,
    context_length: int = 0,
    max_tokens: int = 0,
    batch_size: int = 16,
) -> HeldOut:
    """Loss on the held-out split of a token store, in the windows that training evaluates on.

    Args:
        loaded: The checkpoint.
        folder: The store.
        world: Where to compute.
        context_length: 0: as the checkpoint's run, or what the model is built for, up to 1024.
        max_tokens: Evaluate at most this many tokens, spread evenly over the split; 0: all.
        batch_size: Windows of a forward pass; the sums do not depend on it.

    Raises:
        DataError: The store is broken, too short, or made with another tokenizer than the checkpoint's.
        ConfigError: The context is longer than the model's positions.
    """
    context = context_of(loaded, context_length)
    material = store_material(folder, context, max_tokens=max_tokens, batch_size=batch_size)
    return evaluate_material(loaded, material, world)


def evaluate_text(
    loaded: Loaded,
    path: Path,
    world: World,
    *,
    context_length: int = 0,
    max_tokens: int = 0,
    batch_size: int = 16,
) -> HeldOut:
    """Loss on a text file: every token is predicted once, the first from the end-of-text token.

    The text is cut into windows of `context_length` that do not overlap in what they predict. Arguments and
    errors as in `evaluate_store`; `max_tokens` takes the text's beginning.
    """
    context = context_of(loaded, context_length)
    material = text_material(loaded, path, context, max_tokens=max_tokens, batch_size=batch_size)
    return evaluate_material(loaded, material, world)


def evaluate_material(
    loaded: Loaded, material: Material, world: World, observe: Observer | None = None
) -> HeldOut:
    """Loss on windows whose token ids are the checkpoint's; `observe` as in `train.evaluate.evaluate`.

    Raises:
        DataError: The ids are another tokenizer's.
    """
    check_fit(loaded, material)
    dtype = loaded.run.arithmetic if loaded.run else torch.float32
    loaded.model.to(world.device)  # pyright: ignore
    found = evaluate(loaded.model, material.batches(), material.token_bytes, world, dtype, observe)
    # A whole text's size is known exactly; a part's is the sum over its tokens.
    summed = int((found.count_V * found.token_bytes_V).sum())
    return _held_out(found, summed if material.size is None else material.size, material.context)


def _held_out(found: Evaluation, size: int, context: int) -> HeldOut:
    bits = found.nll_V.sum().item() / math.log(2)
    return HeldOut(
        val_loss=found.loss,
        val_bits_per_byte=bits / size if size else math.nan,
        perplexity=math.exp(min(found.loss, 700.0)),
        tokens=int(found.count_V.sum()),
        bytes=size,
        context_length=context,
    )


def context_of(loaded: Loaded, asked: int) -> int:
    """Tokens a prediction looks back on: `asked`; 0: as in the checkpoint's run, or the model's up to 1024.

    Raises:
        ConfigError: `asked` is longer than the model's positions.
    """
    positions = loaded.positions
    if asked < 0 or (positions is not None and asked > positions):
        accepted = "1 or more" if positions is None else f"1..{positions}, the model's positions"
        raise ConfigError(f"--context-length is {asked}; accepted: {accepted}, or 0 for the run's own")
    if asked:
        return asked
    if loaded.run:
        return loaded.run.context_length
    return min(positions or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
