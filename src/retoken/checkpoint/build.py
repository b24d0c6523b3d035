"""The model of a training checkpoint, built from what lies beside its tensors."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from retoken.checkpoint.folders import checked
from retoken.checkpoint.restore import Restorer
from retoken.errors import CheckpointError, RetokenError

GENERATION_FILE = "generation_config.json"


def described(model: PreTrainedModel) -> dict[str, str]:
    """{file name: text} of what `save_pretrained` writes beside the tensors."""
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__.removeprefix("FSDP")]
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in Path(folder).glob("*.json")}


def build_model(path: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PreTrainedModel:
    """The model that a checkpoint folder describes; its parameters are memory without values.

    Raises:
        CheckpointError: The description is missing, broken, or of no model that is known.
    """
    try:
        config = AutoConfig.from_pretrained(path)
        with no_init_weights(), torch.device(device):
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.tie_weights()
        if (path / GENERATION_FILE).is_file():
            model.generation_config = GenerationConfig.from_pretrained(path)
    except RetokenError:
        raise
    except Exception as error:  # transformers raises many kinds for a broken description
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path}: does not describe a model ({reason})") from error
    return model.eval()


def load_model(path: Path) -> PreTrainedModel:
    """The model of a training checkpoint, on one process, float32, every byte checked first.

    Raises:
        CheckpointError: A file is missing or broken, or does not fit the description.
    """
    found, model = checked(path), build_model(path)
    Restorer(found).model(model, to_train=False)
    return model
