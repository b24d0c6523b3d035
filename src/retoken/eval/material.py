"""What a checkpoint is measured on: windows of a store's held-out split, or of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from retoken.data.tokenizer import check_same, token_bytes
from retoken.data.tokens import TokenStore, eval_starts, eval_windows
from retoken.errors import DataError
from retoken.eval.loading import Loaded

UnitsOf = Callable[[int, Tensor], Tensor]
"""(windows before, windows [B, S + 1]) -> the unit of each predicted token, int64 [B, S]."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Material:
    """Windows of tokens, and what is known of them; read anew by every checkpoint that is measured on it."""

    name: str
    """The store or the file."""
    tokenizer: PreTrainedTokenizerBase
    """Made the token ids."""
    vocab_size: int
    """Every id is below it."""
    token_bytes: Tensor
    """UTF-8 bytes of each token id [V]."""
    batches: Callable[[], Iterator[Tensor]]
    """Windows [B, S + 1], the same at each call."""
    context: int
    """S, at most."""
    size: int | None
    """UTF-8 bytes of the whole text, where it is predicted whole; None: the sum over its tokens."""
    unit: Literal["document", "window"]
    """What belongs together; windows where documents are not known."""
    unit_count: int
    units: UnitsOf


def store_material(folder: Path, context: int, *, max_tokens: int = 0, batch_size: int = 16) -> Material:
    """The held-out split of a token store, in the windows that training evaluates on.

    Raises:
        DataError: The store is broken or too short.
    """
    store = TokenStore.open(folder)
    split = store.split("val")
    starts = torch.from_numpy(eval_starts(split, context + 1, max_tokens))
    ends = torch.from_numpy(split.document_offsets())[1:]

    def units(before: int, windows: Tensor) -> Tensor:
        places = starts[before : before + len(windows), None] + torch.arange(1, windows.shape[1])
        return torch.bucketize(places, ends, right=True)

    return Material(
        name=str(folder),
        tokenizer=store.tokenizer(),
        vocab_size=store.manifest.vocab_size,
        token_bytes=store.token_bytes(),
        batches=lambda: eval_windows(split, context + 1, max_tokens, batch_size=batch_size),
        context=context,
        size=None,
        unit="document",
        unit_count=len(ends),
        units=units,
    )


def text_material(
    loaded: Loaded, path: Path, context: int, *, max_tokens: int = 0, batch_size: int = 16
) -> Material:
    """A text file, by the checkpoint's tokenizer: every token is predicted once, the first from the
    end-of-text token.

    Raises:
        DataError: It cannot be read, is empty, or is not UTF-8.
        CheckpointError: The checkpoint has no tokenizer.
    """
    tokenizer = loaded.need_tokenizer()
    text = _read(path)
    ids = _ids(tokenizer, text, path)
    rows = max(len(tokenizer), loaded.rows)
    sizes = token_bytes(backend_of(tokenizer), rows)
    whole = not max_tokens or max_tokens >= len(ids) - 1
    ids = ids if whole else ids[: max_tokens + 1]
    return Material(
        name=str(path),
        tokenizer=tokenizer,
        vocab_size=int(ids.max()) + 1,
        token_bytes=torch.from_numpy(sizes),
        batches=lambda: text_windows(ids, context, batch_size),
        context=context,
        size=len(text.encode()) if whole else None,
        unit="window",
        unit_count=-(-(len(ids) - 1) // context),
        units=_by_window,
    )


def _by_window(before: int, windows: Tensor) -> Tensor:
    return torch.arange(before, before + len(windows))[:, None].expand_as(windows[:, 1:])


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


def backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The fast tokenizer, which says what each id stands for.

    Raises:
        DataError: there is none.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} has no fast version (tokenizer.json); "
            "accepted: fast tokenizers"
        )
    return backend


def check_fit(loaded: Loaded, material: Material) -> None:
    """Token ids must mean to the model what they meant to the tokenizer that made them.

    Raises:
        DataError: there are more than the model has, or one is another token's.
    """
    if material.vocab_size > loaded.rows:
        raise DataError(
            f"{material.name} has {material.vocab_size} token ids; accepted: up to the model's {loaded.rows}"
        )
    if loaded.tokenizer is not None:
        check_same(loaded.name, loaded.tokenizer, material.name, material.tokenizer)


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
