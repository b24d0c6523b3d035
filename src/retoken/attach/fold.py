"""Folding: what is constant at inference goes into the rows (Eq. 8)."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from retoken.attach.checkpoint import FIELD, FOLDED, is_folded, read_field
from retoken.attach.families import dissect, refuse_wrapped
from retoken.config import require_foldable
from retoken.errors import AttachError
from retoken.nn import Modulator, ModulatorStack, TokenTable
from retoken.nn.folded import fold_modulator


def fold(model: PreTrainedModel) -> PreTrainedModel:
    """Work scale and norm into the rows, in place, for inference only (Eq. 8).

    ReToken's table becomes P - 1 = s * Norm(E), and a layer multiplies by 1 plus its row. MoRT with
    top_k = 1 has the weight 1, so its table becomes s * Norm(E_i) / sqrt(2 N_l), and a layer adds the
    chosen row. With top_k above 1, or where rows are summed, the norm is of the mixture, not of a row: no
    table holds it, so rows stay, and only s and the constants merge into one vector. Folded rows are
    rounded to the table's type once.

    Args:
        model: an attached model in evaluation mode, not placed.

    Returns:
        The same object. `save_pretrained` and `from_pretrained` keep it folded.

    Raises:
        AttachError: nothing is attached, it trains, is wrapped, placed or folded already.
        ConfigError: a rival, or ReToken with summed rows.
    """
    stack = _foldable(model)
    anatomy = dissect(model, read_field(model.config)[0])
    refuse_wrapped(model, anatomy)
    for name, module in list(stack.layers.items()):
        folded = fold_modulator(stack.config, module, len(anatomy.layers))
        stack.layers[name] = folded.train(False)
    written = getattr(model.config, FIELD)
    setattr(model.config, FIELD, {**written, "modulator": {**written["modulator"], FOLDED: True}})
    return model


def _foldable(model: PreTrainedModel) -> ModulatorStack:
    if not isinstance(model, PreTrainedModel) or not hasattr(model, "retoken"):
        kind = type(model).__name__
        raise AttachError(f"{kind} carries no token-indexed parameters; retoken.attach puts them on")
    if is_folded(getattr(model.config, FIELD)):
        raise AttachError("the model is folded already; fold takes a model as it was trained")
    if model.training:
        raise AttachError("the model is in training mode; fold is for inference: call model.eval() first")
    stack: Any = model.retoken
    require_foldable(stack.config)
    for name, module in stack.layers.items():
        if not isinstance(module, Modulator) or type(module.table) is not TokenTable:
            kind = type(getattr(module, "table", module)).__name__
            raise AttachError(f"layer {name} carries a {kind}; fold takes plain tables, before place")
    return stack
