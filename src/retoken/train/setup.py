"""Before the first step: the data, the model and the optimizer, and that they fit each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.hub import cached_file

import retoken
from retoken import checkpoint, presets
from retoken.data.tokenizer import check_same
from retoken.data.tokens import TokenStore, WindowReader, eval_windows
from retoken.errors import CheckpointError, ConfigError, DataError, RetokenError
from retoken.nn import TableFactory, TokenTable
from retoken.optim import build_optimizer, parameter_groups
from retoken.parallel import ShardedRows
from retoken.train.ahead import BatchQueue
from retoken.train.config import TrainConfig
from retoken.train.furnish import Source, follow
from retoken.train.world import World


def open_store(config: TrainConfig) -> TokenStore:
    """The token store, with at least one batch to train on and one window to evaluate.

    Raises:
        DataError: It is missing, broken or too small.
    """
    store = TokenStore.open(config.data)
    window = config.context_length + 1
    for split, needed in (("train", config.batch_size), ("val", 1)):
        tokens = len(store.split(split))
        if tokens // window < needed:
            raise DataError(
                f"{config.data}: split {split} has {tokens} tokens, {tokens // window} windows of {window} "
                f"(context_length + 1); accepted: at least {needed}"
            )
    return store


def build_model(
    config: TrainConfig, store: TokenStore, table_for: Callable[[PreTrainedModel], TableFactory] | None = None
) -> PreTrainedModel:
    """The model at the start of the run, float32. One seed gives every variant the same backbone.

    Args:
        config: The run.
        store: Its data.
        table_for: What makes the tables of a backbone; None: whole ones.

    Raises:
        ConfigError: The context is longer than the backbone's positions.
        DataError: The store's token ids or tokenizer are not the pretrained backbone's.
        AttachError: The backbone cannot carry the variant.
    """
    torch.manual_seed(config.seed)
    model = _random(config, store) if config.preset else _pretrained(config, store)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and config.context_length > positions:
        raise ConfigError(
            f"context_length is {config.context_length}; accepted: up to the backbone's {positions} positions"
        )
    if config.attached is not None:
        table = table_for(model) if table_for else TokenTable
        torch.manual_seed(config.seed + 1)
        retoken.attach(model, config.attached, table=table)
    return model


def choose_trained(model: PreTrainedModel, config: TrainConfig) -> None:
    """Leave the backbone as it is where only what is attached trains."""
    if config.trains == "attached":
        for _, parameter in retoken.param_groups(model)["backbone"]:
            parameter.requires_grad_(False)


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep only each layer's input for the backward pass."""
    old = model.gradient_checkpointing_enable  # deprecated, but all that older releases have
    getattr(model, "activation_checkpointing_enable", old)({"use_reentrant": False})


def load_model(path: Path) -> PreTrainedModel:
    """The model in a folder of `save_pretrained`, or in a training checkpoint; float32, all of it from files.

    Raises:
        CheckpointError: A file is missing or broken, or a weight is missing, unknown or misshapen.
    """
    if checkpoint.is_checkpoint(path):
        return checkpoint.load_model(path)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True
        )
    except RetokenError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds for a broken file
        raise CheckpointError(
            f"{path}: not loadable as a model ({' '.join(str(error).split())[:200]})"
        ) from error
    model, report = loaded
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(what):
            raise CheckpointError(f"{path}: {what.replace('_', ' ')}, first {sorted(report[what])[0]}")
    return _own_memory(model)


def build_optimizer_for(
    model: PreTrainedModel, config: TrainConfig, source: Source | None = None
) -> torch.optim.Optimizer:
    """AdamW over the model's groups; the tables' own optimizer where their rows have a source."""
    groups = parameter_groups(model, retoken.param_groups(model), config.group_options())
    kind = config.tables.optimizer if source is not None else "adamw"
    origins = source.origins() if isinstance(source, ShardedRows) else None
    optimizer = build_optimizer(
        groups, betas=config.betas, eps=config.adam_eps, tables=kind, seed=config.seed, origins=origins
    )
    if source is not None:
        follow(source, optimizer)
    return optimizer


def build_reader(config: TrainConfig, store: TokenStore, world: World) -> BatchQueue:
    """Windows of context_length + 1 tokens, this process's share of each batch."""
    reader = WindowReader(
        store.split("train"),
        window=config.context_length + 1,
        batch_size=world.share_of(config.batch_size),
        seed=config.seed,
        rank=world.rank,
        world_size=world.size,
    )
    return BatchQueue(reader)


def eval_batches(config: TrainConfig, store: TokenStore) -> Iterator[Tensor]:
    """Held-out windows [B, context_length + 1] in order, the same at every call."""
    size = config.micro_batch_size or config.batch_size
    return eval_windows(store.split("val"), config.context_length + 1, config.eval_tokens, batch_size=size)


def count(config: TrainConfig, model: PreTrainedModel) -> presets.Counts:
    """Parameters and FLOPs per token, counted from the model's config."""
    return presets.count(model.config, config.attached, context_length=config.context_length)


def _random(config: TrainConfig, store: TokenStore) -> PreTrainedModel:
    hf_config: Any = presets.get(config.preset).hf_config(vocab_size=store.manifest.vocab_size)
    hf_config.bos_token_id = hf_config.eos_token_id = store.manifest.eos_id
    hf_config.pad_token_id = None
    return AutoModelForCausalLM.from_config(hf_config, dtype=torch.float32)


def _pretrained(config: TrainConfig, store: TokenStore) -> PreTrainedModel:
    model = load_model(Path(config.model))
    found = store.manifest.vocab_size
    rows = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
    _check_tokenizer(config, store)
    if found > rows:
        raise DataError(
            f"{config.data}: {found} token ids; accepted: up to the {rows} of model {config.model}"
        )
    return model


def _check_tokenizer(config: TrainConfig, store: TokenStore) -> None:
    """The backbone's tokenizer, where it comes with one, must give the ids of the store."""
    names = ("tokenizer.json", "tokenizer_config.json")
    if not any(
        cached_file(config.model, name, _raise_exceptions_for_missing_entries=False) for name in names
    ):
        return
    tokenizer = AutoTokenizer.from_pretrained(config.model)
    check_same(config.model, tokenizer, str(config.data), store.tokenizer())


def _own_memory(model: PreTrainedModel) -> PreTrainedModel:
    """Parameters in memory of their own, aligned as PyTorch allocates: not views of the file that was read.

    A matrix product may round differently on data that starts elsewhere, and resuming is to be bit-equal.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model
