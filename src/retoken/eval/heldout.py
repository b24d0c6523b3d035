"""Held-out loss and bits per byte of a checkpoint, by the same sums that training reports."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from retoken.data.tokenizer import token_bytes
from retoken.data.tokens import TokenStore, eval_windows
from retoken.errors import ConfigError, DataError
from retoken.eval.loading import Loaded
from retoken.train.evaluate import Evaluation, evaluate
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
    options = {"context_length": context_length, "batch_size": batch_size}
    store, batches = store_windows(loaded, folder, max_tokens, **options)
    found = _evaluate(loaded, batches, store.token_bytes(), world)
    size = int((found.count_V * found.token_bytes_V).sum())
    return _held_out(found, size, _context(loaded, context_length))


def store_windows(
    loaded: Loaded, folder: Path, max_tokens: int = 0, *, context_length: int = 0, batch_size: int = 16
) -> tuple[TokenStore, Iterator[Tensor]]:
    """A store, and its held-out windows [B, context + 1] for a checkpoint; arguments and errors as above."""
    store = TokenStore.open(folder)
    _check_fit(loaded, store)
    context = _context(loaded, context_length)
    return store, eval_windows(store.split("val"), context + 1, max_tokens, batch_size=batch_size)


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
    tokenizer = loaded.need_tokenizer()
    text = _read(path)
    ids = _ids(tokenizer, text, path)
    sizes = torch.from_numpy(token_bytes(tokenizer.backend_tokenizer, max(len(tokenizer), loaded.rows)))  # pyright: ignore
    context = _context(loaded, context_length)
    whole = not max_tokens or max_tokens >= len(ids) - 1
    ids = ids if whole else ids[: max_tokens + 1]
    found = _evaluate(loaded, text_windows(ids, context, batch_size), sizes, world)
    # The whole text's size is known exactly; a part's is the sum over its tokens.
    size = len(text.encode()) if whole else int((found.count_V * found.token_bytes_V).sum())
    return _held_out(found, size, context)


def text_windows(ids: Tensor, context: int, batch_size: int) -> Iterator[Tensor]:
    """Windows [B, context + 1] that share a token with the next: each token but the first is predicted once.

    The rest at the end comes as a window of its own, as short as it is.
    """
    full = (len(ids) - 1) // context
    if full:
        windows = ids[: full * context + 1].unfold(0, context + 1, context)
        yield from windows.split(batch_size)
    if len(ids) - 1 > full * context:
        yield ids[full * context :].unsqueeze(0)


def _evaluate(loaded: Loaded, batches: Iterator[Tensor], sizes: Tensor, world: World) -> Evaluation:
    dtype = loaded.run.arithmetic if loaded.run else torch.float32
    loaded.model.to(world.device)  # pyright: ignore
    return evaluate(loaded.model, batches, sizes, world, dtype)


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


def _context(loaded: Loaded, asked: int) -> int:
    positions = loaded.positions
    if asked < 0 or (positions is not None and asked > positions):
        accepted = "1 or more" if positions is None else f"1..{positions}, the model's positions"
        raise ConfigError(f"--context-length is {asked}; accepted: {accepted}, or 0 for the run's own")
    if asked:
        return asked
    if loaded.run:
        return loaded.run.context_length
    return min(positions or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def _check_fit(loaded: Loaded, store: TokenStore) -> None:
    """The store's ids must mean to the model what they meant to the tokenizer that made them."""
    if store.manifest.vocab_size > loaded.rows:
        raise DataError(
            f"{store.folder} has {store.manifest.vocab_size} token ids; "
            f"accepted: up to the model's {loaded.rows}"
        )
    if loaded.tokenizer is not None:
        check_tokenizer(loaded.name, loaded.tokenizer, store)


def check_tokenizer(name: str, tokenizer: PreTrainedTokenizerBase, store: TokenStore) -> None:
    """Refuse a store that another tokenizer than a model's made.

    Raises:
        DataError: a token has another id; names it, the store and the model `name`.
    """
    theirs, ours = tokenizer.get_vocab(), store.tokenizer().get_vocab()
    wrong = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if wrong:
        raise DataError(
            f"{store.folder}: made with another tokenizer than {name}'s (token {wrong[0]!r} has id "
            f"{ours.get(wrong[0])} and {theirs.get(wrong[0])}); accepted: data prepared with that tokenizer"
        )


def _read(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise DataError(f"--text {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"--text {path} is not UTF-8 (byte {error.start}); accepted: plain UTF-8 text"
        ) from None
    if not text.strip():
        raise DataError(f"--text {path} is empty; accepted: a file with some text")
    return text


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, path: Path) -> Tensor:
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    if start is None and len(ids) < 2:
        raise DataError(
            f"--text {path} is {len(ids)} token; accepted: two or more, as there is no token to start from"
        )
    return torch.tensor(ids if start is None else [start, *ids])
