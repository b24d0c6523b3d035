"""Where rows enter the residual stream of vLLM's model: modules that become a subclass of their own class.

Not hooks: vLLM keeps compiled graphs on disk and finds what they read by attribute path, which a hook's
number would change from one process to the next. Not new modules around the old ones: parameters keep their
names.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

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


class Site(Inner):
    """Mixed in before a module's own class: its input may be routed, its output gated or added to."""

    retoken_routes: Tensor | None = None
    """The layer whose choice is made from this module's input."""
    retoken_gates: Tensor | None = None
    """The layer whose rows gate its output."""
    retoken_adds: Tensor | None = None
    """The layer whose residual lands on its output."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own pass, with its rows."""
        if self.retoken_routes is not None:
            carried = _OPS.route(args[0], args[0], self.retoken_routes)
            args = (carried, *args[1:])
        output = self.inner(*args, **kwargs)
        first = output[0] if isinstance(output, tuple) else output
        if self.retoken_gates is not None:
            first = _OPS.gate(first, self.retoken_gates)
        if self.retoken_adds is not None:
            first = _OPS.add(first, self.retoken_adds)
        return (first, *output[1:]) if isinstance(output, tuple) else first


class BlockSite(Inner):
    """Mixed in before a decoder layer's class: MoRT chooses from the block's input, before its attention."""

    retoken_routes: Tensor
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
        carried = _OPS.route(hidden, read, self.retoken_routes)
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


def _key(layer: int) -> Tensor:
    return torch.tensor(layer, dtype=torch.int64, device="cpu")


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


def install(layers: nn.ModuleList, family: Family, config: ModulatorConfig) -> None:
    """Let layers ask the pass under way for their modulators, as this configuration has them.

    Raises:
        AttachError: a layer has no place for it.
    """
    for number in config.table_layers(len(layers)):
        if not isinstance(config, MoRTConfig):
            _become(Site, _ends(layers[number], family)[1]).retoken_gates = _key(number)
            continue
        if config.router_input == "block_input":
            _read_block_input(layers[number], number)
        else:
            _become(Site, _ends(layers[number], family)[0]).retoken_routes = _key(number)
        lands = _ends(layers[number + config.injection_delay], family)[1]
        _become(Site, lands).retoken_adds = _key(number)


def _read_block_input(layer: nn.Module, number: int) -> None:
    names = list(inspect.signature(type(layer).forward).parameters)[1:]
    if "hidden_states" not in names:
        raise AttachError(f"{type(layer).__name__} of vLLM takes {', '.join(names)}; needed: hidden_states")
    site = _become(BlockSite, layer)
    site.retoken_routes = _key(number)
    site.retoken_hidden = names.index("hidden_states")
    site.retoken_residual = names.index("residual") if "residual" in names else -1
