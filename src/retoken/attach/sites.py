"""One layer's place in one model: what a pass leaves there for the hooks that act in it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from retoken.errors import AttachError
from retoken.nn import Fetched, ForwardContext, Landing, Modulator
from retoken.ops import Routing, fused

KEYWORD = "retoken_context"


class LayerSite:
    """One layer's place in one model. What hooks read here is the same for every layer but for the tensors,
    so that a compiler that takes the layers one by one compiles only one of them.
    """

    def __init__(self, layer: int, delayed: bool) -> None:
        self.layer, self.delayed = layer, delayed
        self.on_entry: list[Any] = []
        """Called with the layer and its arguments before it runs."""
        self.forget()

    def forget(self) -> None:
        """Nothing is under way."""
        self.modulator: Modulator | None = None
        self.context: ForwardContext | None = None
        self.residual: Landing | None = None
        self.routing: Routing | None = None

    def begin(self, modulators: nn.ModuleDict) -> None:
        """A pass starts. Modulators are looked up anew: an adapter may have put trainable copies there."""
        self.forget()
        if str(self.layer) in modulators:
            self.modulator = modulators[str(self.layer)]  # pyright: ignore

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the model has not run yet, and a pass's tensors cannot be copied."""
        return {**self.__dict__, "modulator": None, "context": None, "residual": None, "routing": None}

    def modulate(self, hidden: Tensor) -> Any:
        """What the layer's modulator gives for `hidden` [B, S, D].

        By what was put together for this pass, where something was; else the module itself is called.

        Raises:
            AttachError: the layer runs outside of its model, or on other positions than its pass.
        """
        context = self.context
        if context is not None and not torch.compiler.is_dynamo_compiling():
            ready = context.ready.layers.get(self.layer)
            if ready is not None:
                try:
                    return ready(hidden, context.ready.room)
                except fused.Unserved:
                    pass  # by the module, which serves or refuses them
        ids, fetched = self.tokens_for(hidden)
        return self.modulator(hidden, ids, fetched)  # pyright: ignore

    def tokens_for(self, hidden: Tensor) -> tuple[Tensor, Fetched | None]:
        """Which rows this pass reads for hidden states [B, S, D], and those rows, where they were fetched.

        Raises:
            AttachError: the layer runs outside of its model.
        """
        if self.context is None:
            raise AttachError(
                "a modulated layer has no token ids: it was called without its model, or its model "
                "does not pass keyword arguments on to its layers"
            )
        return self.context.index_for(hidden), self.context.fetched(self.layer)


class SiteHook:
    """A hook that acts at one layer. An object, not a closure: a deep copy of the model follows its own."""

    def __init__(self, site: LayerSite) -> None:
        self.site = site


def on_first(output: Any, act: Callable[[Tensor], Tensor]) -> Any:
    """A module's output, a tensor or a tuple that starts with one, with `act` done to that tensor."""
    return (act(output[0]), *output[1:]) if isinstance(output, tuple) else act(output)


class Hook(NamedTuple):
    """One hook to register: on which module, before or after it runs."""

    module: nn.Module
    act: Any
    before: bool
    named: bool = False
    """After it: whether `act` is given the keyword arguments too. Before it, it always is."""

    def register(self) -> RemovableHandle:
        """Register it; the handle removes it."""
        if self.before:
            return self.module.register_forward_pre_hook(self.act, with_kwargs=True)
        return self.module.register_forward_hook(self.act, with_kwargs=self.named)


class ActedOn:
    """Mixed in before a module's own class: what acts right before a call and right behind it.

    Hooks would do the same, but PyTorch calls a module that has any by a longer way, which a decoded token
    notices. What replaces the module's `forward` is acted on like hooks of others: outside of it.
    """

    retoken_before: Any = None
    retoken_behind: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own call, hooks and all, between the two."""
        before, behind = self.retoken_before, self.retoken_behind
        if before is not None:
            before(self, args, kwargs)
        output = super().__call__(*args, **kwargs)  # pyright: ignore
        return output if behind is None else behind(self, args, output)


@functools.cache
def mixed_class(mixin: type, own: type[nn.Module]) -> type[nn.Module]:
    """The subclass a module instance becomes. It keeps its class's name, which sharding policies look for."""
    body = {"__module__": own.__module__, "__doc__": own.__doc__}
    return type(own.__name__, (mixin, own), body)


def own_class(module: nn.Module) -> type:
    """The class of a module that became one of such a subclass, or of an attached model, before."""
    return type(module).__bases__[1]


class Around(NamedTuple):
    """One act on a module, before or behind its call. It has one of each at most."""

    module: nn.Module
    act: Any
    before: bool

    @property
    def _name(self) -> str:
        return "retoken_before" if self.before else "retoken_behind"

    def register(self) -> Around:
        """Have it act; `remove` ends that."""
        if not isinstance(self.module, ActedOn):
            self.module.__class__ = mixed_class(ActedOn, type(self.module))
        setattr(self.module, self._name, self.act)
        return self

    def remove(self) -> None:
        """The module without it; of its own class where nothing else acts on it."""
        delattr(self.module, self._name)
        if not {"retoken_before", "retoken_behind"} & vars(self.module).keys():
            self.module.__class__ = own_class(self.module)
