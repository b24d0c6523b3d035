"""How token ids reach the layers of one model instance, and where rows enter its residual stream.

The ids travel as an argument: a hook on the base model adds a `ForwardContext` to the keyword arguments that
it hands to every layer, and each layer instance is of a subclass of its own class that takes it out again.
Activation checkpointing stores a layer's arguments, so a recomputation sees the ids of its own forward pass.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from retoken.attach.families import Anatomy
from retoken.attach.past import keep_tokens, tokens_before
from retoken.attach.rivals.base import RivalConfig
from retoken.attach.sites import KEYWORD, Around, Hook, LayerSite, SiteHook, on_first
from retoken.config import ModulatorConfig, MoRTConfig, ReTokenConfig
from retoken.errors import AttachError
from retoken.nn import ForwardContext, Landing
from retoken.ops import block_input_norm


class GateIncrement(SiteHook):
    """ReToken: gate what enters the residual stream (Eq. 2)."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return on_first(output, self.site.modulate)


class RouteFromMlpInput(SiteHook):
    """MoRT: choose and mix from the state the MLP reads (Eq. 3-5)."""

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        self.route(args[0] if args else kwargs["hidden_states"])

    def route(self, hidden: Tensor) -> None:
        """Leave the residual of `hidden` [B, S, D] where it lands, and the routing for the balance loss."""
        site = self.site
        residual, site.routing = site.modulate(hidden)
        if site.delayed:
            site.context.leave(site.layer, residual)  # pyright: ignore
        else:
            site.residual = residual


class RouteFromBlockInput(RouteFromMlpInput):
    """MoRT as in JTok: choose and mix from the block's normalised input, before its attention."""

    def route(self, hidden: Tensor) -> None:
        """As its base, from the block input `hidden` [B, S, D]."""
        super().route(block_input_norm(hidden))


class AddResidual(SiteHook):
    """MoRT: add the layer's residual to its increment (Eq. 6)."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return on_first(output, self.landing().add_to)

    def landing(self) -> Landing:
        """The residual that lands here. It is dropped: a recomputation makes it anew."""
        residual, self.site.residual = self.site.residual, None
        return residual  # pyright: ignore


class AddDelayedResidual(AddResidual):
    """MoRT: add the residual of an earlier layer (Eq. 16)."""

    def __init__(self, site: LayerSite, source: LayerSite) -> None:
        super().__init__(site)
        self.source = source

    def landing(self) -> Landing:
        """The residual that lands here, from the context."""
        residual = self.site.context.delayed[self.source.layer]  # pyright: ignore
        wanted = torch.is_grad_enabled() and self.source.modulator.scale.requires_grad  # pyright: ignore
        if wanted and not residual.requires_grad:
            raise AttachError(
                "a delayed MoRT residual has no gradient path: activation checkpointing runs with "
                "use_reentrant=True; accepted: use_reentrant=False, or injection_delay=0"
            )
        return residual


class StartForward:
    """Hook on the base model, before it runs: makes the context of a pass from its input ids."""

    def __init__(self, model: PreTrainedModel, base: nn.Module, sites: list[LayerSite]) -> None:
        self.model, self.sites = model, sites
        self.names = tuple(inspect.signature(base.forward).parameters)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = dict(zip(self.names, args, strict=False)) | kwargs
        ids, mask = given.get("input_ids"), given.get("attention_mask")
        if ids is None:
            raise AttachError(
                "token-indexed parameters need input_ids, found inputs_embeds only; "
                "pass input_ids (embeddings do not tell which token they stand for)"
            )
        stack: Any = self.model.retoken
        before = tokens_before(given, stack.index) if stack.index else None
        index = stack.begin(ids, _mask_of_last(mask, ids), before)
        for site in self.sites:
            site.begin(stack.layers)
        fetch = stack.fetch(index)
        context = ForwardContext(ids, fetch, stack.ready(index, fetch), index, stack.mask)
        return args, kwargs | {KEYWORD: context}


class EndForward:
    """Hook on the base model, after it: keeps what later calls need, out of reach of recomputations."""

    def __init__(self, model: PreTrainedModel, sites: list[LayerSite]) -> None:
        self.model, self.sites = model, sites

    def __call__(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        stack: Any = self.model.retoken
        stack.finish({site.layer: site.routing for site in self.sites if site.routing is not None})
        if stack.index is not None and stack.index.resumes:
            context = kwargs[KEYWORD]
            keep_tokens(_cache_of(kwargs, output), context.ids, context.mask)


def _cache_of(kwargs: dict[str, Any], output: Any) -> Any:
    """What a pass has filled, given to it or made by it; None: nothing."""
    given = kwargs.get("past_key_values")
    return getattr(output, "past_key_values", None) if given is None else given


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


def plan_hooks(
    model: PreTrainedModel, config: ModulatorConfig, anatomy: Anatomy
) -> tuple[list[LayerSite], list[Hook | Around]]:
    """The site of every layer, and the hooks and acts that this configuration's modulators need."""
    delay = config.injection_delay if isinstance(config, MoRTConfig) else 0
    sites = [LayerSite(layer, delay > 0) for layer in range(len(anatomy.layers))]
    hooks: list[Hook | Around] = [
        Hook(anatomy.base, StartForward(model, anatomy.base, sites), True),
        Hook(anatomy.base, EndForward(model, sites), False, named=True),
    ]
    if isinstance(config, RivalConfig):
        return sites, [*hooks, *config.hooks(anatomy, sites)]
    for layer in config.table_layers(len(sites)):
        if isinstance(config, MoRTConfig):
            hooks.extend(_mort_hooks(config, anatomy, sites, layer))
        elif isinstance(config, ReTokenConfig):
            hooks.append(Around(anatomy.increments[layer], GateIncrement(sites[layer]), False))
    return sites, hooks


def _mort_hooks(config: MoRTConfig, anatomy: Anatomy, sites: list[LayerSite], layer: int) -> list[Around]:
    hooks: list[Around] = []
    source = sites[layer]
    if config.router_input == "block_input":
        source.on_entry.append(RouteFromBlockInput(source))
    else:
        hooks.append(Around(anatomy.mlps[layer], RouteFromMlpInput(source), True))
    landing = layer + config.injection_delay
    add = AddDelayedResidual(sites[landing], source) if source.delayed else AddResidual(source)
    return [*hooks, Around(anatomy.increments[landing], add, False)]
