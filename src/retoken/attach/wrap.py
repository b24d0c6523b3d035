"""How token ids reach the layers of one model instance, and where rows enter its residual stream.

The ids travel as an argument: a hook on the base model adds a `ForwardContext` to the keyword arguments that it
hands to every layer, and each layer instance is of a subclass of its own class that takes it out again. Activation
checkpointing stores a layer's arguments, so a recomputation sees the ids of its own forward pass.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from retoken.attach.families import Anatomy
from retoken.config import MoRTConfig, ReTokenConfig
from retoken.errors import AttachError
from retoken.nn import ForwardContext, Modulator
from retoken.ops import block_input_norm
from retoken.ops.precision import widen

KEYWORD = "retoken_context"


class LayerSite:
    """One layer's place in one model: which modulators act here, and the context of the pass under way."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.context: ForwardContext | None = None
        self.on_entry: list[RouteFromBlockInput] = []

    def modulator(self, layer: int) -> Modulator:
        """Looked up at each use: adapters may have put a trainable copy in its place."""
        return self.model.retoken.layers[str(layer)]  # pyright: ignore

    def pass_under_way(self) -> ForwardContext:
        """The context, or an error when the layer is run outside of its model."""
        if self.context is None:
            raise AttachError("a modulated layer was called without its model, so its token ids are unknown")
        return self.context


class SiteHook:
    """A hook that acts for one modulator. An object, not a closure: a deep copy of the model follows its own."""

    def __init__(self, site: LayerSite, layer: int) -> None:
        self.site, self.layer = site, layer


def _with_first(output: Any, first: Tensor) -> Any:
    return (first, *output[1:]) if isinstance(output, tuple) else first


class GateIncrement(SiteHook):
    """ReToken: gate what enters the residual stream (Eq. 2)."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        increment = output[0] if isinstance(output, tuple) else output
        ids = self.site.pass_under_way().ids_for(increment)
        return _with_first(output, self.site.modulator(self.layer)(increment, ids))


class RouteFromMlpInput(SiteHook):
    """MoRT: choose and mix from the state the MLP reads (Eq. 3-5)."""

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        self.route(args[0] if args else kwargs["hidden_states"])

    def route(self, hidden: Tensor) -> None:
        """Leave the residual of `hidden` [B, S, D] in the context."""
        context = self.site.pass_under_way()
        residual, routing = self.site.modulator(self.layer)(hidden, context.ids_for(hidden))
        context.leave(self.layer, residual, routing)


class RouteFromBlockInput(RouteFromMlpInput):
    """MoRT as in JTok: choose and mix from the block's normalised input, before its attention."""

    def route(self, hidden: Tensor) -> None:
        """Leave the residual of the block input `hidden` [B, S, D] in the context."""
        super().route(block_input_norm(hidden))


class AddResidual(SiteHook):
    """MoRT: add the residual of layer `layer` to the increment of the layer where it lands (Eq. 6, 16)."""

    def __init__(self, site: LayerSite, layer: int, here: bool) -> None:
        super().__init__(site, layer)
        self.here = here

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        increment = output[0] if isinstance(output, tuple) else output
        residual = self.site.pass_under_way().land(self.layer, self.here).to(increment.device)
        self._check_gradient_path(residual)
        return _with_first(output, (widen(increment) + residual).to(increment.dtype))

    def _check_gradient_path(self, residual: Tensor) -> None:
        scale = self.site.modulator(self.layer).scale
        if torch.is_grad_enabled() and scale.requires_grad and not residual.requires_grad:
            raise AttachError(
                "a delayed MoRT residual has no gradient path: activation checkpointing runs with "
                "use_reentrant=True; accepted: use_reentrant=False, or injection_delay=0"
            )


class StartForward:
    """Hook on the base model: makes the context of a pass from its input ids."""

    def __init__(self, model: PreTrainedModel, base: nn.Module) -> None:
        self.model = model
        self.names = tuple(inspect.signature(base.forward).parameters)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = dict(zip(self.names, args, strict=False)) | kwargs
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if ids is None:
            raise AttachError(
                "token-indexed parameters need input_ids, found inputs_embeds only; "
                "pass input_ids (embeddings do not tell which token they stand for)"
            )
        context = ForwardContext(ids, _mask_of_last(mask, ids))
        self.model.retoken.begin(context)  # pyright: ignore
        return args, kwargs | {KEYWORD: context}


def _mask_of_last(mask: Any, ids: Tensor) -> Tensor | None:
    """The [B, S] mask of the ids given now, from one that may cover cached tokens too."""
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[1] < ids.shape[1]:
        return None
    return mask[:, mask.shape[1] - ids.shape[1] :] != 0


class ModulatedLayer:
    """Mixed in before a decoder layer's own class: takes the context out of the arguments."""

    retoken_site: LayerSite

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own forward pass, with the context at hand for the hooks inside."""
        site = self.retoken_site
        site.context = kwargs.pop(KEYWORD, None)
        try:
            for hook in site.on_entry:
                hook(self, args, kwargs)  # pyright: ignore
            return super().forward(*args, **kwargs)  # pyright: ignore
        finally:
            site.context = None


@functools.cache
def modulated_layer_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    """The subclass a layer instance becomes. It keeps its class's name, by which sharding policies find layers."""
    body = {"__module__": layer_class.__module__, "__doc__": layer_class.__doc__}
    return type(layer_class.__name__, (ModulatedLayer, layer_class), body)


class Hook(NamedTuple):
    """One hook to register: on which module, before or after it runs."""

    module: nn.Module
    act: SiteHook
    before: bool


def plan_hooks(
    model: PreTrainedModel, config: ReTokenConfig | MoRTConfig, anatomy: Anatomy
) -> tuple[list[LayerSite], list[Hook]]:
    """The site of every layer, and the hooks that this configuration's modulators need."""
    sites = [LayerSite(model) for _ in anatomy.layers]
    hooks: list[Hook] = []
    for layer in config.table_layers(len(sites)):
        if isinstance(config, ReTokenConfig):
            hooks.append(Hook(anatomy.increments[layer], GateIncrement(sites[layer], layer), False))
            continue
        if config.router_input == "block_input":
            sites[layer].on_entry.append(RouteFromBlockInput(sites[layer], layer))
        else:
            hooks.append(Hook(anatomy.mlps[layer], RouteFromMlpInput(sites[layer], layer), True))
        landing = layer + config.injection_delay
        hooks.append(Hook(anatomy.increments[landing], AddResidual(sites[landing], layer, landing == layer), False))
    return sites, hooks
