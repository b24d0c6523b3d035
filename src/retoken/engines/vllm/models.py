"""Served models: vLLM's class of a backbone with the modulators in it. One factory for every family."""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.logger import init_logger
from vllm.model_executor.models.registry import ModelRegistry

from retoken.engines.vllm import answer_searches
from retoken.engines.vllm.earlier import EarlierTokens
from retoken.engines.vllm.in_graph import InGraphPasses, put_in_graph
from retoken.engines.vllm.options import read_options
from retoken.engines.vllm.passes import begin, ids_of
from retoken.engines.vllm.sites import install, layers_of
from retoken.engines.vllm.tables import RowsFile, build_stack, plan_of, put_rows
from retoken.engines.vllm.weights import Incoming
from retoken.errors import ConfigError
from retoken.ops import fused
from retoken.serving.reader import FolderReader

MODEL_FILES = "model*.safetensors"
"""What vLLM's loader gets of a folder with packed rows. It would open that file, too: as private memory,
which the system refuses of one larger than its own."""

logger = init_logger(f"vllm.{__name__}")  # vLLM shows what is logged below its own name


class ServedModel:
    """Mixed in before vLLM's class of the backbone."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        """Builds the backbone and the modulators, whose weights are still to come.

        Raises:
            AttachError: vLLM's class has no place for them.
            CheckpointError: the config does not say what is attached.
            ConfigError: options, or uses of the engine, that are not accepted.
        """
        refuse_unserved(vllm_config)
        config = vllm_config.model_config.hf_config
        plan = plan_of(config, read_options(vllm_config.additional_config))
        if plan.placed and vllm_config.load_config.load_format == "dummy":
            raise ConfigError("load_format is 'dummy'; accepted with placed rows: a format that reads files")
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # pyright: ignore
        layers = layers_of(self, config.num_hidden_layers)  # pyright: ignore
        places = install(layers, plan.family, plan.modulator)
        self.retoken = build_stack(plan, config, vllm_config.model_config.dtype, len(layers))
        index = self.retoken.index
        self.retoken_earlier = None if index is None else EarlierTokens(index, vllm_config)
        modules = {int(layer): module for layer, module in self.retoken.layers.items()}
        self.retoken_serving, self.retoken_places = (vllm_config, plan, modules), places
        self.retoken_in_graph: InGraphPasses | None = None
        self.retoken_device = torch.get_default_device()  # while vLLM reloads, parameters are on none
        self.retoken_whole = False
        self.retoken_file: RowsFile | None = None
        if plan.packed:
            self.allow_patterns_overrides = [MODEL_FILES]
        fused.passes()  # compiled code is loaded now, not within the first request
        answer_searches()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """A pass. What is attached to it is not compiled: it begins before vLLM's compiled part."""
        vllm_config, _, modules = self.retoken_serving
        given = kwargs.get("input_ids", args[0] if args else None)
        ids = ids_of(given, vllm_config.model_config.hf_config.vocab_size)
        earlier = self.retoken_earlier
        index = ids if earlier is None else earlier.rows_of(ids)
        within = self.retoken_in_graph
        started = begin(self.retoken, modules, index) if within is None else within.begin(index)
        output = super().__call__(*args, **kwargs)  # pyright: ignore
        started.finish()
        return output

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load the backbone and the modulators, and place rows; a later call may bring a part only.

        Raises:
            CheckpointError: a modulator's tensor is missing or has another shape.
        """
        vllm_config, plan, _ = self.retoken_serving
        incoming = Incoming(self.retoken, plan.placed)
        loaded = super().load_weights(incoming.rest(weights))  # pyright: ignore
        if not self.retoken_whole:
            incoming.refuse_gaps()
        if plan.placed and (not self.retoken_whole or incoming.brings_rows or self._has_other_rows()):
            self._place(incoming)
        if not self.retoken_whole:
            self.retoken_in_graph = put_in_graph(self.retoken, self.retoken_places, vllm_config)
        elif self.retoken_in_graph is not None:
            self.retoken_in_graph.find_rows_again()
        self.retoken_whole = True
        return {*(loaded or ()), *incoming.loaded}

    def _place(self, incoming: Incoming) -> None:
        vllm_config, plan, _ = self.retoken_serving
        folder = local_folder(vllm_config)
        if incoming.samples:
            incoming.check_samples(FolderReader(folder))
        self.retoken_file = RowsFile.of(plan, folder)
        placement = put_rows(self, plan, folder, vllm_config.model_config.dtype, self.retoken_device)
        logger.info("%s", placement)

    def _has_other_rows(self) -> bool:
        """Whether the folder has had another packed file since rows were placed."""
        return self.retoken_file is not None and self.retoken_file.replaced()


@functools.cache
def served_class(name: str, backbone: str) -> type[nn.Module]:
    """The class that serves an attached architecture, from the name of its backbone's."""
    base: Any = ModelRegistry.models[backbone].load_model_cls()
    return type(name, (ServedModel, base), {"__module__": "retoken.engines.vllm"})


def local_folder(vllm_config: VllmConfig) -> Path:
    """The folder of the model's files on this machine."""
    model = vllm_config.model_config
    if Path(model.model).is_dir():
        return Path(model.model)
    from huggingface_hub import snapshot_download

    cache = vllm_config.load_config.download_dir
    return Path(snapshot_download(model.model, revision=model.revision, cache_dir=cache))


def refuse_unserved(vllm_config: VllmConfig) -> None:
    """Refuse what would not be right.

    Raises:
        ConfigError: which option, and what is accepted.
    """
    if vllm_config.model_config.enable_prompt_embeds:
        raise ConfigError(
            "enable_prompt_embeds is True; accepted: False (embeddings do not tell which token they are)"
        )
    stages = vllm_config.parallel_config.pipeline_parallel_size
    if stages > 1:
        raise ConfigError(f"pipeline_parallel_size is {stages}; accepted: 1")
    graphs = vllm_config.compilation_config.cudagraph_mode
    if vllm_config.device_config.device_type != "cpu" and graphs != CUDAGraphMode.NONE:
        raise ConfigError(
            f"cudagraph_mode is {graphs}; accepted: NONE (a captured pass would read the ids it was captured "
            "with)"
        )
