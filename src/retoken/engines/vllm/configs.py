"""An attached model's config as vLLM needs it: the backbone's own, with what is attached in a field."""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

import logging
from typing import Any

from transformers import PreTrainedConfig
from vllm.transformers_utils import config as vllm_config

from retoken.attach.checkpoint import FIELD, PREFIX


def as_backbone(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of the backbone, which vLLM knows by its `model_type`; field `retoken` stays.

    vLLM decides by `model_type` how a family's attention, positions and types are treated, and sends configs
    to its worker processes, which cannot import a class that was made while loading.
    """
    if isinstance(getattr(config, FIELD, None), dict) and config.model_type.startswith(PREFIX):
        config.__class__ = type(config).__bases__[0]
        config.model_type = type(config).model_type  # pyright: ignore
    return config


class BackboneParser(vllm_config.HFConfigParser):
    """Reads `config.json` as vLLM does, attached models as their backbones."""

    def parse(self, model: Any, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], PreTrainedConfig]:
        """The dict in the file, and the config it describes."""
        values, config = super().parse(model, *args, **kwargs)
        return values, as_backbone(config)


def register_parser() -> None:
    """Let vLLM read `config.json` with it. Once: the public way to do so logs that it replaces another."""
    if isinstance(vllm_config.get_config_parser("hf"), BackboneParser):
        return
    log = logging.getLogger(vllm_config.__name__)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        vllm_config.register_config_parser("hf")(BackboneParser)
    finally:
        log.setLevel(level)
