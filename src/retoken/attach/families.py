"""Where each backbone family keeps what is modulated. A family is data: adding one is adding a line."""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from retoken.errors import AttachError


@dataclass(frozen=True, kw_only=True)
class Family:
    """Module paths: `layers` from the base model (the model without its head), the others from a layer."""

    layers: str = "layers"
    """The list of decoder layers."""
    mlp: str = "mlp"
    """The MLP or mixture; what it is given is what MoRT's router reads (Eq. 3)."""
    increment: str = "mlp"
    """The module whose output is added to the residual stream: the MLP, or the norm or dropout behind it."""

    def to_dict(self) -> dict[str, str]:
        """For config.json."""
        return asdict(self)


_NORM_AFTER_MLP = Family(increment="post_feedforward_layernorm")

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family(),
    "smollm3": Family(),
    "starcoder2": Family(),
    "olmo": Family(),
    "gemma": Family(),
    "gemma2": _NORM_AFTER_MLP,
    "gemma3_text": _NORM_AFTER_MLP,
    "olmo2": _NORM_AFTER_MLP,
    "olmo3": _NORM_AFTER_MLP,
    "phi3": Family(increment="resid_mlp_dropout"),
    "gpt2": Family(layers="h"),
    "gpt_neox": Family(increment="post_mlp_dropout"),
    "mixtral": Family(),
    "qwen2_moe": Family(),
    "qwen3_moe": Family(),
    "olmoe": Family(),
    "deepseek_v2": Family(),
    "deepseek_v3": Family(),
    "glm4_moe": Family(),
}
"""Keyed by the backbone's `model_type`."""


class Anatomy(NamedTuple):
    """The modules of one model that attaching touches."""

    base: nn.Module
    layers: nn.ModuleList
    mlps: list[nn.Module]
    increments: list[nn.Module]
    vocab_size: int
    hidden_size: int


def family_of(model: PreTrainedModel) -> Family:
    """The family of a model.

    Raises:
        AttachError: none is known for its `model_type`.
    """
    model_type = model.config.model_type
    if model_type not in FAMILIES:
        raise AttachError(
            f"model_type {model_type!r} is not a known family ({', '.join(FAMILIES)}); describe it: "
            f"retoken.attach(model, config, family=retoken.Family(layers=..., mlp=..., increment=...))"
        )
    return FAMILIES[model_type]


def _find(root: nn.Module, path: str, what: str, owner: str) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError:
        has = ", ".join(name for name, _ in root.named_children())
        raise AttachError(f"{owner} has no {what} at {path!r}; it has: {has}") from None


def refuse_wrapped(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Attaching changes classes: what has replaced a `forward`, or compiled or sharded it, would not notice.

    Raises:
        AttachError: something has.
    """
    for module in (model, anatomy.base, *anatomy.layers):
        found = {
            "a replaced forward (accelerate's hooks, a kernel patch)": "forward" in vars(module),
            "torch.compile": module._compiled_call_impl is not None,
            "fully_shard": isinstance(module, FSDPModule),
        }
        for what, wraps in found.items():
            if wraps:
                raise _wrapped(module, what)
    for module in (*anatomy.mlps, *anatomy.increments):  # a replaced forward or a compiled one acts inside
        if isinstance(module, FSDPModule):
            raise _wrapped(module, "fully_shard")


def _wrapped(module: nn.Module, what: str) -> AttachError:
    return AttachError(f"{type(module).__name__} is wrapped by {what}; accepted: the bare model")


def dissect(model: PreTrainedModel, family: Family) -> Anatomy:
    """Find the modules a family names.

    Raises:
        AttachError: one is missing, or the base model does not pass keyword arguments on to its layers.
    """
    name = type(model).__name__
    base: Any = model.base_model
    if base is model or model.get_output_embeddings() is None:
        raise AttachError(
            f"{name} has no language-model head; accepted: a causal language model (…ForCausalLM)"
        )
    kinds_of_argument = {p.kind for p in inspect.signature(base.forward).parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds_of_argument:
        raise AttachError(
            f"{type(base).__name__}.forward takes no **kwargs, which carry token ids to its layers"
        )
    layers = _find(base, family.layers, "list of layers", name)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise AttachError(f"{name}: {family.layers!r} is a {type(layers).__name__}, not a list of layers")
    kinds = [f"{name} layer {i}" for i in range(len(layers))]
    mlps = [_find(x, family.mlp, "MLP", kind) for x, kind in zip(layers, kinds, strict=True)]
    ends = [_find(x, family.increment, "MLP increment", kind) for x, kind in zip(layers, kinds, strict=True)]
    embeddings: Any = model.get_input_embeddings()
    return Anatomy(
        base, layers, mlps, ends, embeddings.weight.shape[0], model.config.get_text_config().hidden_size
    )


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers: the list as long as the config says the model is deep."""
    depth = model.config.get_text_config().num_hidden_layers
    lists = [m for m in model.base_model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    return list(lists[0]) if lists else []
