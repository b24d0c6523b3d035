"""Token ids of earlier passes, for rows that are looked up by more than the current token.

They ride in the cache of keys and values, which is the caller's and knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from retoken.errors import AttachError
from retoken.nn.index import NgramIndex, Tokens


class IdsLayer(DynamicLayer):
    """One more layer of a cache: ids for keys, and for values 0 at padding; [B, 1, S, 1] int64.

    So what reorders, repeats or crops a cache (beams, several answers to a prompt, speculation) does
    it to the ids too.
    """


def tokens_before(given: Mapping[str, Any], index: NgramIndex) -> Tokens | None:
    """The last tokens of what a pass goes on from, as many as `index` looks at; None: it begins.

    Args:
        given: the pass's arguments by name.
        index: what looks rows up.

    Raises:
        AttachError: the cache has tokens whose ids are not known, or ids are not enough; or it is paged, as
            `generate_batch` has it, and the pass's positions are of several sequences.
    """
    if given.get("cache") is not None:
        raise AttachError(
            "rows are looked up by n-grams, and a paged cache holds the tokens before input_ids, but "
            "not their ids; accepted: generate"
        )
    cache = given.get("past_key_values")
    length = cache.get_seq_length() if cache is not None else 0
    if length == 0:
        return None
    kept = _ids_in(cache) if index.resumes else None
    if kept is None or kept.get_seq_length() != length:
        why = "passes of this model left no ids there" if index.resumes else "more than ids is needed of them"
        raise AttachError(
            f"rows are looked up by n-grams, and {length} tokens before input_ids are in a cache: {why}; "
            "accepted: the whole text as input_ids, with use_cache=False or a cache that is empty"
        )
    ids, there = (x[:, 0, -index.reach :, 0] for x in (kept.keys, kept.values))  # pyright: ignore
    return Tokens(ids, there != 0)


def keep_tokens(cache: Any, ids: Tensor, mask: Tensor | None) -> None:
    """Leave the ids [B, S] of a pass in the cache that it has filled; `mask` [B, S] is false at padding."""
    if not isinstance(cache, Cache):
        return
    kept = _ids_in(cache)
    if kept is None:
        kept = IdsLayer()
        kept.is_compileable = cache.is_compileable  # a static cache that has lost that gets another mask
        cache.layers.append(kept)
    there = torch.ones_like(ids) if mask is None else mask.to(ids)
    kept.update(ids[:, None, :, None], there[:, None, :, None])


def _ids_in(cache: Any) -> IdsLayer | None:
    return next((x for x in getattr(cache, "layers", ()) if isinstance(x, IdsLayer)), None)
