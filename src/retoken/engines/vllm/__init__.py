"""The vLLM plugin: folders of attached models are served by plain `vllm serve`.

Nothing here imports vLLM before vLLM has called `register`, so a machine without it can import this package.
"""

from __future__ import annotations

import sys
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from retoken.attach.families import FAMILIES

PREFIX = "ReToken"


def architectures() -> dict[str, str]:
    """{an attached model's architecture: its backbone's} of every known family."""
    backbones = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type] for model_type in FAMILIES]
    return {f"{PREFIX}{name}": name for name in backbones}


def register() -> None:
    """What vLLM calls in each of its processes, before it reads a config; it may call it again."""
    from vllm import ModelRegistry  # pyright: ignore

    from retoken.engines.vllm.configs import register_parser

    answer_searches()
    register_parser()
    for name in architectures():
        ModelRegistry.register_model(name, f"{__name__}:{name}")


def answer_searches() -> None:
    """Let vLLM look through a process that has loaded numba.

    Its CPU worker asks every object of every module for its `__dict__`. llvmlite's handle of its library
    takes that for the name of a C function, and the worker trips over the answer.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab.setdefault("__dict__", {})


def __getattr__(name: str) -> Any:
    """The served class of an architecture, made when vLLM asks for it."""
    backbone = architectures().get(name)
    if backbone is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from retoken.engines.vllm.models import served_class

    return served_class(name, backbone)
