"""attach, detach, and what can be asked of an attached model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from retoken.attach.absent import TABLE_KEYS, AbsentTable, without_tables
from retoken.attach.checkpoint import (
    FIELD,
    attached_config_class,
    attached_model_class,
    is_folded,
    read_field,
    renamings,
)
from retoken.attach.families import Anatomy, Family, dissect, family_of, refuse_wrapped
from retoken.attach.rivals import Maker, Rival, RivalConfig
from retoken.attach.sites import mixed_class, own_class
from retoken.attach.wrap import ModulatedLayer, plan_hooks
from retoken.config import ModulatorConfig, TableConfig
from retoken.errors import AttachError
from retoken.nn import Modulator, ModulatorStack, TableFactory, TokenTable
from retoken.nn.folded import Folded, build_folded
from retoken.nn.index import NgramIndex
from retoken.nn.stack import SumLoads, build_modulator, index_for
from retoken.ops import RouterLoad

USED_CACHE = "used_cache"
"""In the field of an attached model that cannot go on from a cache: its `use_cache` before."""
_HANDLES = "_retoken_handles"
_CONVERSIONS = "_weight_conversions"  # what transformers keeps of how it renamed a loaded checkpoint's keys


def attach(
    model: PreTrainedModel,
    config: ModulatorConfig,
    family: Family | None = None,
    *,
    table: TableFactory = TokenTable,
) -> PreTrainedModel:
    """Put token-indexed parameters on a causal language model, in place; `detach` undoes it.

    Args:
        model: a Hugging Face causal language model, random or pretrained, not wrapped by anything yet.
        config: which modulator, and its options: a `ReTokenConfig`, a `MoRTConfig`, or one of
            `retoken.attach.rivals`. Where a cache does not hold all that a position needs of those before
            it (Engram), the model is set to generate without one.
        family: where this backbone keeps its layers and MLPs; None: by its `model_type`.
        table: makes each layer's table; for tables that are divided from the start.

    Returns:
        The same object, with the modulators under `model.retoken`.

    Raises:
        AttachError: the model is wrapped, attached already, or of an unknown family; or a part is missing.
        ConfigError: the configuration does not fit the model's depth.
    """
    if not isinstance(config, TableConfig):
        accepted = "a ReTokenConfig, a MoRTConfig or one of retoken.attach.rivals"
        found = f"the type {config.__name__}" if isinstance(config, type) else f"a {type(config).__name__}"
        raise AttachError(f"config is {found}; accepted: {accepted}")
    if not isinstance(model, PreTrainedModel):
        raise AttachError(
            f"attach takes a transformers PreTrainedModel, found {type(model).__name__}; "
            "attach before wrapping it (DDP, FSDP, PEFT, torch.compile)"
        )
    if hasattr(model, "retoken"):
        raise AttachError(f"{type(model).__name__} already carries token-indexed parameters; detach it first")
    family = family or family_of(model)
    anatomy = dissect(model, family)
    refuse_wrapped(model, anatomy)
    stack = _build_stack(
        model, anatomy, config, table
    )  # may fail for want of memory: the model is untouched till here
    model_class = attached_model_class(type(model))
    written: dict[str, Any] = {"modulator": config.to_dict(), "family": family.to_dict()}
    if _shuns_cache(stack):
        written[USED_CACHE] = [holder.use_cache for holder in _cache_users(model)]
    _set_config(model, written)
    model.__class__ = model_class
    conversions = getattr(model, _CONVERSIONS, None)
    if conversions is not None:
        setattr(model, _CONVERSIONS, [*conversions, *renamings()])
    _install(model, anatomy, stack)
    return model


def _set_config(model: PreTrainedModel, written: dict[str, Any]) -> None:
    """Give the model a config of its own: the caller may have built other models from the one it had."""
    old, new = model.config, copy.deepcopy(model.config)
    new.__class__ = attached_config_class(type(old))
    setattr(new, FIELD, written)
    _replace_config(model, old, new)


def _replace_config(model: PreTrainedModel, old: Any, new: Any) -> None:
    for module in model.modules():
        if getattr(module, "config", None) is old:
            module.config = new


def install_from_config(model: PreTrainedModel) -> None:
    """Build and hook up the modulators that the config of a model, built as its attached class, asks for.

    Without tables where it says that their rows are elsewhere; those in a checkpoint are then left there.

    Raises:
        CheckpointError: the config does not say what to attach.
    """
    family, config = read_field(model.config)
    anatomy, written = dissect(model, family), getattr(model.config, FIELD)
    table: TableFactory = TokenTable
    if without_tables(written):
        table = AbsentTable
        ignored = set(model._keys_to_ignore_on_load_unexpected or ())
        model._keys_to_ignore_on_load_unexpected = ignored | {TABLE_KEYS}
    _install(model, anatomy, _build_stack(model, anatomy, config, table, is_folded(written)))


def _build_stack(
    model: PreTrainedModel,
    anatomy: Anatomy,
    config: ModulatorConfig,
    table: TableFactory = TokenTable,
    folded: bool = False,
) -> ModulatorStack:
    layers = config.table_layers(len(anatomy.layers))
    built = {i: _modulator_for(model, anatomy, config, i, table, folded) for i in layers}
    stack = ModulatorStack(config, built, _index_of(config, anatomy))
    return stack.train(model.training)


def _index_of(config: ModulatorConfig, anatomy: Anatomy) -> NgramIndex | None:
    if isinstance(config, RivalConfig):
        return config.index_for(anatomy.vocab_size, anatomy.hidden_size, len(anatomy.layers))
    return index_for(config, anatomy.vocab_size)


def _shuns_cache(stack: ModulatorStack) -> bool:
    return stack.index is not None and not stack.index.resumes


def _cache_users(model: PreTrainedModel) -> list[Any]:
    """What says whether the model uses a cache: its own config, then what `generate` goes by."""
    return [model.config, *filter(None, [model.generation_config])]


def _install(model: PreTrainedModel, anatomy: Anatomy, stack: ModulatorStack) -> None:
    model.retoken = stack
    if _shuns_cache(stack):
        for holder in _cache_users(model):
            holder.use_cache = False
    sites, hooks = plan_hooks(model, stack.config, anatomy)
    for layer, site in zip(anatomy.layers, sites, strict=True):
        layer.__class__ = mixed_class(ModulatedLayer, type(layer))
        layer.retoken_site = site  # pyright: ignore
    setattr(model, _HANDLES, [hook.register() for hook in hooks])


def _modulator_for(
    model: PreTrainedModel,
    anatomy: Anatomy,
    config: ModulatorConfig,
    layer: int,
    table: TableFactory,
    folded: bool,
) -> Modulator | Folded | Rival:
    device = next(anatomy.layers[layer].parameters()).device
    if isinstance(config, RivalConfig):
        return config.build(anatomy, layer, Maker(table, device, model.dtype))
    width, depth = anatomy.hidden_size, len(anatomy.layers)
    if folded:
        return build_folded(config, anatomy.vocab_size, width, device, model.dtype, table)
    return build_modulator(config, anatomy.vocab_size, width, depth, device, model.dtype, table)


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """The backbone as it was before `attach`, its parameters untouched; the tables are dropped.

    Raises:
        AttachError: nothing is attached, or the model has been wrapped since.
    """
    if not isinstance(model, PreTrainedModel) or not hasattr(model, "retoken"):
        raise AttachError(f"{type(model).__name__} carries no token-indexed parameters, or wraps what does")
    anatomy = dissect(model, read_field(model.config)[0])
    refuse_wrapped(model, anatomy)
    for handle in getattr(model, _HANDLES):
        handle.remove()
    for layer in anatomy.layers:
        layer.__class__ = own_class(layer)
        del layer.retoken_site
    delattr(model, _HANDLES)
    used = getattr(model.config, FIELD).get(USED_CACHE, ())
    for holder, value in zip(_cache_users(model), used, strict=False):
        holder.use_cache = value
    del model.retoken
    model.__class__ = own_class(model)
    _drop_config(model)
    return model


def _drop_config(model: PreTrainedModel) -> None:
    config = model.config
    config.__class__ = type(config).__bases__[0]
    delattr(config, FIELD)
    conversions = getattr(model, _CONVERSIONS, None)
    if conversions is not None:
        ours = {str(r.source_patterns) for r in renamings()}
        setattr(model, _CONVERSIONS, [c for c in conversions if str(c.source_patterns) not in ours])


def stack_of(model: nn.Module) -> ModulatorStack:
    """The modulators of a model, also when something is wrapped around it.

    Raises:
        AttachError: nothing is attached.
    """
    for module in model.modules():
        if hasattr(module, "retoken"):
            return module.retoken  # pyright: ignore
    raise AttachError(
        f"{type(model).__name__} carries no token-indexed parameters; retoken.attach puts them on"
    )


def modulators(model: nn.Module) -> dict[int, Modulator]:
    """{layer index: its modulator}: `.scale` [D], `.table`, `.lookup(ids)`; MoRT: `.router.weight` [E, D]."""
    return {int(layer): module for layer, module in stack_of(model).layers.items()}  # pyright: ignore


def balance_loss(model: nn.Module) -> Tensor:
    """lambda times Eq. 21 of the last forward pass, averaged over layers; a float32 scalar, 0 for ReToken."""
    return stack_of(model).balance_loss()


def router_loads(model: nn.Module) -> dict[int, RouterLoad]:
    """{layer: sums of Eq. 21} of the last forward pass; they add over micro-batches and ranks."""
    return stack_of(model).load_of_last_forward()


def _constant(loads: dict[int, RouterLoad]) -> dict[int, RouterLoad]:
    return {i: RouterLoad(*(torch.as_tensor(x).detach() for x in load)) for i, load in loads.items()}


@contextmanager
def batch_load(model: nn.Module, total: dict[int, RouterLoad] | SumLoads) -> Iterator[None]:
    """Within, `balance_loss` is this forward pass's part of a whole batch whose summed loads are `total`.

    The parts, and their gradients, add up to the whole batch's balance loss whatever the split (Eq. 21).
    `total` may also be a function that gives those loads from this pass's own: where other processes have the
    rest at the same time, one sum over them is enough.
    """
    stack = stack_of(model)
    stack.part_of(total if callable(total) else _constant(total))
    try:
        yield
    finally:
        stack.part_of(None)
