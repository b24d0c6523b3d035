"""Where rows enter the residual stream of vLLM's model: modules that become a subclass of their own class.

Not hooks: vLLM keeps compiled graphs on disk and finds what they read by attribute path, which a hook's
number would change from one process to the next. Not new modules around the old ones: parameters keep their
names.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from retoken.attach.families import Family
from retoken.config import ModulatorConfig, MoRTConfig
from retoken.engines.vllm import ops  # noqa: F401  (registers torch.ops.retoken)
from retoken.errors import AttachError
from retoken.ops import block_input_norm

_ALIASES = {"mlp": "block_sparse_moe"}
"""Names that vLLM's classes give to what transformers' classes call otherwise."""
_OPS: Any = torch.ops.retoken


class Inner:
    """What a module does itself: its class's forward, or one that was put on the instance, as vLLM's
    Transformers backend does where it fuses projections."""

    retoken_inner: Any = None

    def inner(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own pass."""
        if self.retoken_inner is not None:
            return self.retoken_inner(*args, **kwargs)
        return super().forward(*args, **kwargs)  # pyright: ignore


class Way(Protocol):
    """How a module gets at a layer's modulator: `ByOperator`, or `InGraph`."""

    def gate(self, increment: Tensor) -> Tensor:
        """ReToken: the gated increment [..., D] (Eq. 2)."""
        ...

    def route(self, carried: Tensor, read: Tensor) -> Tensor:
        """MoRT: choose from the state `read` [..., D] (Eq. 3); what is to go on in place of `carried`."""
        ...

    def add(self, increment: Tensor) -> Tensor:
        """MoRT: the increment [..., D] with the residual that was chosen (Eq. 6)."""
        ...


class ByOperator(NamedTuple):
    """By an operator in the graph, which asks the pass under way."""

    key: Tensor
    """The layer's number."""

    def gate(self, increment: Tensor) -> Tensor:
        """As `Way`."""
        return _OPS.gate(increment, self.key)

    def route(self, carried: Tensor, read: Tensor) -> Tensor:
        """As `Way`."""
        return _OPS.route(carried, read, self.key)

    def add(self, increment: Tensor) -> Tensor:
        """As `Way`."""
        return _OPS.add(increment, self.key)


class Site(Inner):
    """Mixed in before a module's own class: its input may be routed, its output gated or added to."""

    retoken_routes: Way | None = None
    """Of the layer whose choice is made from this module's input."""
    retoken_gates: Way | None = None
    """Of the layer whose rows gate its output."""
    retoken_adds: Way | None = None
    """Of the layer whose residual lands on its output."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own pass, with its rows."""
        if self.retoken_routes is not None:
            args = (self.retoken_routes.route(args[0], args[0]), *args[1:])
        output = self.inner(*args, **kwargs)
        first = output[0] if isinstance(output, tuple) else output
        if self.retoken_gates is not None:
            first = self.retoken_gates.gate(first)
        if self.retoken_adds is not None:
            first = self.retoken_adds.add(first)
        return (first, *output[1:]) if isinstance(output, tuple) else first


class BlockSite(Inner):
    """Mixed in before a decoder layer's class: MoRT chooses from the block's input, before its attention."""

    retoken_routes: Way
    retoken_hidden: int
    """Where the layer's arguments have the hidden states."""
    retoken_residual: int
    """Where they have what is still to be added to them; -1: nowhere."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own pass, after the choice."""
        hidden = args[self.retoken_hidden]
        residual = args[self.retoken_residual] if self.retoken_residual >= 0 else None
        whole = hidden if residual is None else hidden + residual
        read = block_input_norm(whole)
        carried = self.retoken_routes.route(hidden, read)
        args = (*args[: self.retoken_hidden], carried, *args[self.retoken_hidden + 1 :])
        return self.inner(*args, **kwargs)


@functools.cache
def _subclass(mixin: type, module_class: type[nn.Module]) -> type[nn.Module]:
    return type(module_class.__name__, (mixin, module_class), {"__module__": module_class.__module__})


def _become(mixin: type, module: nn.Module) -> Any:
    if not isinstance(module, mixin):
        own = vars(module).pop("forward", None)
        module.__class__ = _subclass(mixin, type(module))
        module.retoken_inner = own
    return module


def layers_of(model: nn.Module, depth: int) -> nn.ModuleList:
    """The decoder layers of vLLM's model: its list of `depth` modules.

    Raises:
        AttachError: there is none.
    """
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not lists:
        raise AttachError(f"{type(model).__name__} has no list of {depth} layers; it cannot be served here")
    return lists[0]


def _find(layer: nn.Module, path: str) -> nn.Module | None:
    for name in (path, _ALIASES.get(path, path)):
        try:
            return layer.get_submodule(name)
        except AttributeError:
            continue
    return None


def _ends(layer: nn.Module, family: Family) -> tuple[nn.Module, nn.Module]:
    """A layer's MLP, and the module whose output is added to the residual stream.

    Raises:
        AttachError: vLLM's class has it elsewhere.
    """
    mlp, increment = _find(layer, family.mlp), _find(layer, family.increment)
    if increment is None and family.increment.endswith("dropout"):
        increment = mlp  # vLLM's classes have no dropout
    for module, path in ((mlp, family.mlp), (increment, family.increment)):
        if module is None:
            has = ", ".join(name for name, _ in layer.named_children())
            raise AttachError(f"{type(layer).__name__} of vLLM has no {path!r}; it has: {has}")
    return mlp, increment  # pyright: ignore


class Place(NamedTuple):
    """Where a module asks for a layer's modulator."""

    module: Any
    name: str
    """Of the attribute that has the way to it."""

    def give(self, way: Way) -> None:
        """Have the module ask this way."""
        setattr(self.module, self.name, way)


def install(layers: nn.ModuleList, family: Family, config: ModulatorConfig) -> dict[int, list[Place]]:
    """Let layers ask the pass under way for their modulators, as this configuration has them.

    Returns:
        {layer: where it is asked for}.

    Raises:
        AttachError: a layer has no place for it.
    """
    found = {n: _places(layers, n, family, config) for n in config.table_layers(len(layers))}
    for number, places in found.items():
        for place in places:
            place.give(ByOperator(torch.tensor(number, dtype=torch.int64, device="cpu")))
    return found


def _places(layers: nn.ModuleList, number: int, family: Family, config: ModulatorConfig) -> list[Place]:
    mlp, increment = _ends(layers[number], family)
    if not isinstance(config, MoRTConfig):
        return [Place(_become(Site, increment), "retoken_gates")]
    block = config.router_input == "block_input"
    site = _reading_block_input(layers[number]) if block else _become(Site, mlp)
    lands = _ends(layers[number + config.injection_delay], family)[1]
    return [Place(site, "retoken_routes"), Place(_become(Site, lands), "retoken_adds")]


def _reading_block_input(layer: nn.Module) -> BlockSite:
    names = list(inspect.signature(type(layer).forward).parameters)[1:]
    if "hidden_states" not in names:
        raise AttachError(f"{type(layer).__name__} of vLLM takes {', '.join(names)}; needed: hidden_states")
    site = _become(BlockSite, layer)
    site.retoken_hidden = names.index("hidden_states")
    site.retoken_residual = names.index("residual") if "residual" in names else -1
    return site
