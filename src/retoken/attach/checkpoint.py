"""Saving and loading through transformers: a model class and a config class for each attached backbone.

An attached `LlamaForCausalLM` becomes an instance of `ReTokenLlamaForCausalLM`, with `model_type`
"retoken_llama": a program that does not know retoken refuses such a checkpoint, instead of serving the
backbone without its tables.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from retoken.attach.absent import ABSENT, ROWS_FILE
from retoken.attach.families import FAMILIES, Family
from retoken.attach.rivals import Rival
from retoken.config import ModulatorConfig, config_from_dict
from retoken.errors import CheckpointError
from retoken.nn import Modulator, TokenTable
from retoken.nn.mort import Router

RowServer = Callable[[PreTrainedModel, Any, dict[str, Any]], Any]
"""Lets a model without tables read its rows: (model, where it was loaded from, the options of that)."""
PREFIX = "retoken_"
FIELD = "retoken"
FOLDED = "folded"
"""In the modulator's part of the field; a version that does not know it refuses the unknown option."""


def renamings() -> list[WeightRenaming]:
    """Checkpoint key -> parameter name: `….table` and `….router` are modules here, single tensors on disk."""
    return [
        WeightRenaming(rf"^retoken\.layers\.(\d+)\.{name}(?!.)", rf"retoken.layers.\1.{name}.weight")
        for name in ("table", "router")
    ]


class AttachedModel:
    """Mixed in before a backbone's own class: what an attached model does differently from its backbone."""

    labels_at: ClassVar[int]
    """Where `labels` stands among the positional arguments of `forward`."""
    serve_rows: ClassVar[RowServer | None] = None
    """Set once, when retoken is imported: files of rows are known in a room above this one."""

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # pyright: ignore
        from retoken.attach.api import install_from_config

        install_from_config(self)  # pyright: ignore

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:
        """As the backbone's, but tables that are not in the checkpoint are an error, not random rows.

        Where the rows lie in a packed file of their own they are served from there, in place.

        Raises:
            CheckpointError: a file is truncated, a tensor has another shape, or a modulator's is missing.
        """
        asked = {k: kwargs.pop(k, False) for k in ("ignore_mismatched_sizes", "output_loading_info")}
        wanted = {"ignore_mismatched_sizes": True, "output_loading_info": True}
        try:
            model, info = super().from_pretrained(name, *args, **kwargs, **wanted)  # pyright: ignore
        except SafetensorError as error:
            raise CheckpointError(f"{name}: a safetensors file is broken: {error}") from error
        _refuse_gaps(name, info, asked["ignore_mismatched_sizes"])
        if is_folded(getattr(model.config, FIELD)):  # transformers lets every loaded parameter train
            model.retoken.requires_grad_(False)
        _provide_rows(model, name, kwargs)
        return (model, info) if asked["output_loading_info"] else model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's forward pass; with labels, the balance loss is added to the loss (Eq. 21)."""
        outputs = super().forward(*args, **kwargs)  # pyright: ignore
        labels = args[self.labels_at] if len(args) > self.labels_at else kwargs.get("labels")
        if labels is None or not self.retoken.adds_loss:  # pyright: ignore
            return outputs
        share = _share_of_batch(labels, kwargs.get("num_items_in_batch"))
        balance = self.retoken.balance_loss() * share  # pyright: ignore
        if isinstance(outputs, tuple):
            return (outputs[0] + balance.to(outputs[0]), *outputs[1:])
        outputs.loss = outputs.loss + balance.to(outputs.loss)
        return outputs

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, **kwargs: Any
    ) -> Any:
        """The backbone's resize; the tables follow, and new tokens' rows modulate nothing.

        Raises:
            AttachError: rows are looked up by hashes, which spread them by the vocabulary's size.
        """
        size: int = self.get_input_embeddings().weight.shape[0]  # pyright: ignore
        wanted = new_num_tokens or size
        wanted += -wanted % (pad_to_multiple_of or 1)
        self.retoken.check_resize(size, wanted)  # pyright: ignore
        embeddings = super().resize_token_embeddings(  # pyright: ignore
            new_num_tokens, pad_to_multiple_of, **kwargs
        )
        self.retoken.resize(embeddings.weight.shape[0])  # pyright: ignore
        return embeddings

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Modulator | TokenTable | Router | Rival):
            module.reset_parameters()
        else:
            super()._init_weights(module)  # pyright: ignore


def _provide_rows(model: Any, name: Any, options: dict[str, Any]) -> None:
    """Serve rows that are in a file; leave a model that was asked for without its tables to who asked."""
    written = getattr(model.config, FIELD)
    if ABSENT in written:
        setattr(model.config, FIELD, {key: value for key, value in written.items() if key != ABSENT})
    elif ROWS_FILE in written and AttachedModel.serve_rows is not None:
        AttachedModel.serve_rows(model, name, options)


def _refuse_gaps(name: Any, info: dict[str, Any], any_shape: bool) -> None:
    """Raise the CheckpointError that transformers' report on a loaded checkpoint calls for."""
    for key, found, wanted in () if any_shape else sorted(info["mismatched_keys"]):
        raise CheckpointError(
            f"{name}: {key} is {list(found)} in the checkpoint, {list(wanted)} by config.json"
        )
    missing = sorted(key for key in info["missing_keys"] if key.startswith("retoken."))
    if missing:
        raise CheckpointError(
            f"{name}: config.json promises token-indexed parameters, but {missing[0]} is not in the "
            f"checkpoint ({len(missing)} missing in all)"
        )


def _share_of_batch(labels: Tensor, whole: Any) -> Any:
    """This micro-batch's part of an accumulated batch, when the caller says how many labels the whole has."""
    return 1.0 if whole is None else (labels[..., 1:] != -100).sum() / whole


def read_field(config: PreTrainedConfig) -> tuple[Family, ModulatorConfig]:
    """What the config of an attached model says is attached, and where; raises as `read_written`."""
    return read_written(getattr(config, FIELD, None))


def read_written(written: Any) -> tuple[Family, ModulatorConfig]:
    """What the field in a config.json says is attached, and where.

    Raises:
        CheckpointError: it does not.
        ConfigError: it does, in a format or with options that this version does not know.
    """
    if not isinstance(written, dict) or not {"modulator", "family"} <= set(written):
        raise CheckpointError(
            f"config.json: field {FIELD!r} is {written!r}; accepted: what save_pretrained wrote"
        )
    modulator = dict(written["modulator"])
    folded = modulator.pop(FOLDED, False)
    if type(folded) is not bool:
        raise CheckpointError(
            f"config.json: {FIELD}.modulator.{FOLDED} is {folded!r}; accepted: true or false"
        )
    return Family(**written["family"]), config_from_dict(modulator)


def is_folded(written: Any) -> bool:
    """Whether an attached model's field in its config says that its tables are folded (Eq. 8)."""
    return isinstance(written, dict) and written.get("modulator", {}).get(FOLDED) is True


@functools.cache
def attached_config_class(config_class: type[PreTrainedConfig]) -> type[PreTrainedConfig]:
    """`LlamaConfig` -> `ReTokenLlamaConfig`, whose field `retoken` carries the modulator's configuration."""
    body = {"model_type": PREFIX + config_class.model_type, "__module__": __name__}
    return type(f"ReToken{config_class.__name__}", (config_class,), body)


@functools.cache
def attached_model_class(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """`LlamaForCausalLM` -> `ReTokenLlamaForCausalLM`, known to transformers' loading and key renaming."""
    backbone_config: Any = model_class.config_class
    config_class = attached_config_class(backbone_config)
    forward = functools.wraps(model_class.forward)(
        lambda self, *args, **kwargs: AttachedModel.forward(self, *args, **kwargs)
    )
    # transformers reads a class's module to learn which attention and expert kernels it may use.
    body = {"config_class": config_class, "__module__": model_class.__module__, "forward": forward}
    names = [*inspect.signature(model_class.forward).parameters, "labels"]
    body["labels_at"] = names.index("labels") - 1
    name = f"ReToken{model_class.__name__}"
    cls: Any = type(name, (AttachedModel, model_class), body)
    backbone = get_checkpoint_conversion_mapping(model_class.__name__)
    if backbone is None:
        backbone = get_checkpoint_conversion_mapping(backbone_config.model_type)
    register_checkpoint_conversion_mapping(name, [*(backbone or []), *renamings()], overwrite=True)
    AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
    AutoModelForCausalLM.register(config_class, cls, exist_ok=True)
    return cls


def _resolve(model_type: str) -> type[PreTrainedConfig]:
    """The real config class of a backbone type, its model class registered on the way."""
    config_class = CONFIG_MAPPING[model_type]
    attached_model_class(AutoModelForCausalLM._model_mapping[config_class])
    return attached_config_class(config_class)


@functools.cache
def _gateway(model_type: str) -> type[PreTrainedConfig]:
    """What AutoConfig finds for "retoken_…" before that backbone's modules have been imported."""

    def from_dict(cls: Any, values: dict[str, Any], **kwargs: Any) -> Any:
        return _resolve(model_type).from_dict(values, **kwargs)

    body = {"model_type": PREFIX + model_type, "from_dict": classmethod(from_dict), "__module__": __name__}
    return type(f"ReTokenGateway_{model_type}", (PreTrainedConfig,), body)


def register_family(model_type: str) -> None:
    """Let `from_pretrained` load attached checkpoints of this backbone type; done for every known family."""
    AutoConfig.register(PREFIX + model_type, _gateway(model_type), exist_ok=True)


def register_known_families(serve_rows: RowServer) -> None:
    """What `import retoken` does, without importing any backbone.

    Args:
        serve_rows: how models whose rows lie in a file of their own get to them.
    """
    AttachedModel.serve_rows = staticmethod(serve_rows)
    for model_type in FAMILIES:
        register_family(model_type)
