"""Finding a checkpoint: a run folder, a checkpoint in it, a saved model, or a name on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from retoken.attach.absent import ROWS_FILE
from retoken.attach.checkpoint import FIELD
from retoken.checkpoint import is_checkpoint, newest_path
from retoken.checkpoint.files import read_json
from retoken.data.tokens import TokenStore
from retoken.errors import CheckpointError, ConfigError, DataError, RetokenError
from retoken.serving.load import load
from retoken.train.config import TrainConfig
from retoken.train.folder import RunFolder
from retoken.train.setup import load_model

Tables = Literal["device", "host", "disk"]
Dtype = Literal["float32", "bfloat16"]
HUB = "hf:"
ACCEPTED = "a run folder, a checkpoint or model folder with config.json, or hf:NAME"


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A model, ready to be measured."""

    name: str
    """The folder, or the hub's name."""
    model: PreTrainedModel
    """In evaluation mode, token-indexed parameters attached where the checkpoint has them."""
    tokenizer: PreTrainedTokenizerBase | None
    """The checkpoint's own, or that of the store its run was trained on; None where neither is there."""
    run: TrainConfig | None
    """The run that made it, where it lies in a run folder."""

    @property
    def positions(self) -> int | None:
        """Longest sequence the model is built for; None where its config names none."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @property
    def rows(self) -> int:
        """Token ids the model has embeddings for."""
        embeddings: Any = self.model.get_input_embeddings()
        return embeddings.weight.shape[0]

    def need_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            CheckpointError: there is none.
        """
        if self.tokenizer is None:
            raise CheckpointError(
                f"{self.name}: no tokenizer there; accepted: a checkpoint saved with its tokenizer"
            )
        return self.tokenizer


def open_checkpoint(
    where: str,
    *,
    tables: Tables | None = None,
    rows_path: Path | None = None,
    verify: Path | None = None,
    device: torch.device | None = None,
    dtype: Dtype = "float32",
) -> Loaded:
    """Load a checkpoint for evaluation or generation.

    Args:
        where: A run folder (its final model, or its newest checkpoint), a checkpoint in one, any folder that
            `save_pretrained` or `retoken export` wrote, or "hf:" and a name on the Hugging Face hub.
        tables: Where the rows are to live, of a model folder; None: as parameters, or in the packed file that
            the folder has.
        rows_path: The packed file, as `retoken.load`'s `path`.
        verify: A model folder that every fetched row is compared with; rows are placed for it.
        device: Where placed rows are to be used; None: the host.
        dtype: Of the weights.

    Raises:
        CheckpointError: Nothing loadable is there; the file and what was found are named.
        ConfigError: Rows cannot be placed as they are asked to be.
    """
    placed = tables is not None or rows_path is not None or verify is not None
    if where.startswith(HUB):
        if placed:
            raise ConfigError(
                f"tables is {tables!r} with {where}; accepted with a model folder on this machine"
            )
        name = where.removeprefix(HUB)
        model = _in_dtype(load_model(Path(name)).eval(), dtype)
        return Loaded(name=name, model=model, tokenizer=_tokenizer_at(name), run=None)
    folder = _model_folder(Path(where))
    run = run_of(folder)
    if placed or ROWS_FILE in _attached_in(folder):
        model = _load_placed(folder, tables, rows_path, verify, device, dtype)
    else:
        model = _in_dtype(load_model(folder).eval(), dtype)
    return Loaded(name=str(folder), model=model, tokenizer=tokenizer_for(folder), run=run)


def _in_dtype(model: PreTrainedModel, dtype: Dtype) -> PreTrainedModel:
    """The model with its weights in a type, as from_pretrained has it: rotary frequencies stay float32."""
    for weight in model.parameters():
        weight.data = weight.data.to(getattr(torch, dtype))
    return model


def _attached_in(folder: Path) -> dict[str, Any]:
    """What a folder's config says is attached; empty where nothing is, or where it cannot be read."""
    try:
        found = read_json(folder / "config.json").get(FIELD)
    except CheckpointError:
        return {}  # who loads it says what is wrong
    return found if isinstance(found, dict) else {}


def _load_placed(
    folder: Path,
    tables: Tables | None,
    rows_path: Path | None,
    verify: Path | None,
    device: torch.device | None,
    dtype: Dtype,
) -> PreTrainedModel:
    if is_checkpoint(folder):
        raise ConfigError(
            f"tables is {tables!r} with {folder}, a training checkpoint; accepted with a model folder: "
            "retoken export makes one"
        )
    try:
        options: dict[str, Any] = {"path": rows_path, "verify": verify or False, "device": device}
        return load(folder, tables, dtype=getattr(torch, dtype), **options)
    except RetokenError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds for a broken file
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder}: not loadable as a model ({reason})") from error


def _model_folder(path: Path) -> Path:
    if not path.exists():
        raise CheckpointError(f"checkpoint {path} does not exist; accepted: {ACCEPTED}")
    if not path.is_dir():
        raise CheckpointError(f"checkpoint {path} is a file; accepted: {ACCEPTED}")
    run = RunFolder(path)
    if run.model.is_dir():
        return run.model
    if run.checkpoints.is_dir():
        newest = newest_path(run.checkpoints)
        if newest is None:
            raise CheckpointError(
                f"checkpoint {path}: the run has not written a checkpoint yet; let it go on first"
            )
        return newest
    if not (path / "config.json").is_file():
        raise CheckpointError(f"checkpoint {path} has no config.json; accepted: {ACCEPTED}")
    return path


def run_of(folder: Path) -> TrainConfig | None:
    """The run whose folder this model lies in: RUN/model or RUN/checkpoints/step-N; None: it lies in none."""
    for above in (folder.resolve().parent, folder.resolve().parent.parent):
        path = RunFolder(above).config
        values: Any = read_json(path).get("train") if path.is_file() else None
        if isinstance(values, dict):
            try:
                return TrainConfig.from_dict(values)
            except (ConfigError, KeyError, TypeError):
                return None  # another version's: the model itself says all that is needed
    return None


def tokenizer_for(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a model's folder, or that of the data its run was trained on; None: neither is there.

    Raises:
        CheckpointError: The one in the folder is broken.
    """
    return _tokenizer_at(str(folder)) or _tokenizer_of(run_of(folder))


def _tokenizer_at(where: str) -> PreTrainedTokenizerBase | None:
    # Without this check transformers asks the hub for a folder that merely lacks a tokenizer.
    if Path(where).is_dir() and not any(Path(where).glob("tokenizer*")):
        return None
    try:
        return AutoTokenizer.from_pretrained(where)
    except Exception as error:  # transformers raises many kinds for a broken tokenizer file
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{where}: its tokenizer does not load ({reason})") from error


def _tokenizer_of(run: TrainConfig | None) -> PreTrainedTokenizerBase | None:
    store = store_of(run)
    try:
        return None if store is None else store.tokenizer()
    except DataError:
        return None  # the caller is told where a tokenizer is needed


def store_of(run: TrainConfig | None) -> TokenStore | None:
    """The store that a run was trained on; None: no run, or the store has moved on since."""
    try:
        return TokenStore.open(run.data) if run else None
    except DataError:
        return None
