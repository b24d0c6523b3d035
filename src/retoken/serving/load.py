"""load: a model folder with its rows put straight where they are to be served from (Sec. 3.3)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils.hub import cached_file

from retoken.attach.absent import ABSENT, ROWS_FILE, ROWS_FINGERPRINT, AbsentTable
from retoken.attach.api import stack_of
from retoken.attach.checkpoint import FIELD, is_folded
from retoken.checkpoint.files import atomic_file, read_json, writing
from retoken.errors import AttachError, CheckpointError, ConfigError
from retoken.serving.direct import Gatherer
from retoken.serving.neighbours import ALONE, Neighbours
from retoken.serving.packed import PackedFile
from retoken.serving.place import Asked, Placement, Seat, house, place, serve
from retoken.serving.reader import FolderReader
from retoken.serving.shelf import Prefetch

_OF_THE_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def load(
    folder: str | Path,
    tables: Literal["device", "host", "disk"] | None = None,
    *,
    path: str | Path | None = None,
    budget: Mapping[str, int] | None = None,
    rows: str | None = None,
    counts: Any = None,
    verify: bool | str | Path = False,
    prefetch: Prefetch = "record",
    gather: Gatherer = "host",
    device: str | torch.device | None = None,
    **from_pretrained_options: Any,
) -> PreTrainedModel:
    """Load an attached model with its rows straight in their tier, never through another; for inference.

    The model is built without tables, and its rows go block by block from the folder's files to where they
    are asked for. Only with tables="device", and neither `rows` nor `path`, are they loaded as parameters.

    Args:
        folder: what `save_pretrained` or `retoken export` wrote.
        tables: the lowest tier in use, as for `place`; None: "disk" where the folder's rows are packed, else
            "device".
        path: the packed file, as for `place`; written first where it is missing. None for a folder whose rows
            are packed: that file, in place.
        budget, counts: as for `place`.
        rows: float32, bfloat16, int8 or float8_e4m3; None: as they are. Packed rows have their type already.
        verify: True, or a model folder: compare every fetched row with that folder's.
        prefetch, gather: as for `place`.
        device: where the model computes; None: where from_pretrained puts it, the host.
        from_pretrained_options: `dtype`, `attn_implementation`, `device_map` and the like.

    Returns:
        The model in evaluation mode; `model.retoken.source.placement` says what lives where.

    Raises:
        AttachError: nothing is attached to the folder's model.
        CheckpointError: a file is missing, truncated, foreign, changed, or of another model.
        ConfigError: a request that is not understood, or does not fit, with the numbers.
        DataError: counts that are none.
    """
    folder = Path(folder)
    written = field_of(folder)
    tables = tables or ("disk" if ROWS_FILE in written else "device")
    ways: dict[str, Any] = {"counts": counts, "verify": verify, "prefetch": prefetch, "gather": gather}
    asked = Asked.of(tables, budget, path=path, rows=rows, **ways)
    if ROWS_FILE in written:
        packed = packed_rows(folder, written, asked)
        model = _at(device, build_without_tables(folder, **from_pretrained_options))
        serve_packed(model, seat_of(model), packed, asked)
        return model
    if asked.as_they_are:
        model = _at(device, AutoModelForCausalLM.from_pretrained(folder, **from_pretrained_options))
        place(model, "device", budget=budget)
        return model
    asked.need_path()
    reader = FolderReader(folder)
    model = _at(device, build_without_tables(folder, **from_pretrained_options))
    check_shapes(model, reader.shapes(), reader.folded, folder)
    house(seat_of(model), reader, asked)
    return model


def build_without_tables(folder: Path, **from_pretrained_options: Any) -> PreTrainedModel:
    """A folder's model with an `AbsentTable` in each layer: no memory for rows, and none is read.

    Raises:
        CheckpointError: a file is broken, or something else than a table is missing.
        ConfigError: options that change what is returned.
    """
    if from_pretrained_options.get("output_loading_info"):
        raise ConfigError("output_loading_info is True; accepted: options that leave it the model alone")
    options = from_pretrained_options
    dtype: dict[str, Any] = {key: options.pop(key) for key in ("dtype",) if key in options}
    read: Any = AutoConfig.from_pretrained(folder, return_unused_kwargs=True, **options)
    config, rest = read
    setattr(config, FIELD, {**getattr(config, FIELD), ABSENT: True})
    return AutoModelForCausalLM.from_pretrained(folder, config=config, **dtype, **rest)


def _at(device: str | torch.device | None, model: Any) -> PreTrainedModel:
    return model if device is None else model.to(device)


def seat_of(model: PreTrainedModel) -> Seat:
    """Where a model without tables computes, and in what."""
    return Seat(stack_of(model), model.dtype, model.device)


def check_shapes(
    model: PreTrainedModel, found: Mapping[int, tuple[int, ...]], folded: bool, where: Path
) -> None:
    """Refuse rows that are not those of a model without tables.

    Args:
        model: the model.
        found: {layer: shape of its table} as the rows have it.
        folded: whether they are folded.
        where: the file or folder that holds them.

    Raises:
        CheckpointError: other layers, another shape, or folded where the model is not.
    """
    if folded != is_folded(getattr(model.config, FIELD)):
        raise CheckpointError(f"{where}: of another model: folded is {folded}; accepted: {not folded}")
    for layer, module in stack_of(model).layers.items():
        table: Any = module.table
        assert isinstance(table, AbsentTable)
        if int(layer) not in found:
            raise CheckpointError(
                f"{where}: config.json promises token-indexed parameters, but layer {layer}'s are missing"
            )
        if found[int(layer)] != tuple(table.shape):
            wanted = list(table.shape)
            raise CheckpointError(
                f"{where}: the rows of layer {layer} are {list(found[int(layer)])}, {wanted} by config.json"
            )
    extra = sorted(set(found) - {int(layer) for layer in stack_of(model).layers})
    if extra:
        raise CheckpointError(
            f"{where}: of another model: it has rows of layer {extra[0]}, config.json has not"
        )


def serve_rows_file(model: PreTrainedModel, name: Any, options: dict[str, Any]) -> None:
    """What `from_pretrained` does with a model whose rows lie in a packed file: serve them from it, in place.

    Args:
        model: the model, without tables.
        name: its folder, or its name on the hub.
        options: those of `from_pretrained`.

    Raises:
        CheckpointError: the file is missing, truncated, foreign, changed, or of another model.
    """
    written = getattr(model.config, FIELD)
    file = rows_file_of(written, name)
    if not Path(name).is_dir():
        hub: dict[str, Any] = {key: options[key] for key in _OF_THE_HUB if key in options}
        file = Path(cached_file(name, file.name, **hub))  # pyright: ignore
    asked = Asked.of("disk", None, path=file, rows=None, counts=None, verify=False)
    serve_packed(model, seat_of(model), open_rows(file, written), asked)


def rows_file_of(written: dict[str, Any], folder: Any) -> Path:
    """The packed file of a folder whose config's field names one.

    Raises:
        CheckpointError: it is no file's name.
    """
    name = written[ROWS_FILE]
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise CheckpointError(
            f"{folder}: config.json: {FIELD}.{ROWS_FILE} is {name!r}; accepted: the name of a file beside it"
        )
    return Path(folder) / name


def field_of(folder: Path) -> dict[str, Any]:
    """What a folder's config.json says is attached.

    Raises:
        AttachError: nothing is.
        CheckpointError: there is none, or it is broken.
    """
    written = read_json(folder / "config.json").get(FIELD)
    if not isinstance(written, dict):
        raise AttachError(
            f"{folder}: config.json has no field {FIELD!r}; accepted: the folder of an attached model"
        )
    return written


def packed_rows(
    folder: Path, written: dict[str, Any], asked: Asked, neighbours: Neighbours = ALONE
) -> PackedFile:
    """The packed file a folder's rows are to be read from: its own, or a copy of it at `path`.

    Raises:
        CheckpointError: it is missing, truncated, foreign, changed, or of another model.
        ConfigError: rows of another type, or a check against tables that the folder has not.
    """
    if asked.verify is True:
        raise ConfigError(
            f"verify is True; accepted for {folder}, whose rows are packed: a folder with tables"
        )
    file = rows_file_of(written, folder)
    path = asked.path
    if path is not None:
        neighbours.first(lambda: None if path.exists() else _copy_rows(file, path, written))
    packed = open_rows(asked.path or file, written)
    if asked.rows not in (None, packed.layout.rows):
        raise ConfigError(
            f"rows is {asked.rows!r}; accepted for {folder}, whose rows are packed: {packed.layout.rows}"
        )
    return packed


def _copy_rows(file: Path, path: Path, written: dict[str, Any]) -> None:
    open_rows(file, written)
    with writing(path), atomic_file(path) as partial:
        shutil.copyfile(file, partial)


def open_rows(file: Path, written: dict[str, Any]) -> PackedFile:
    """The packed file that a model's config promises.

    Raises:
        CheckpointError: it is missing, truncated, foreign, changed, or of another model.
    """
    packed = PackedFile(file)
    if packed.fingerprint != written.get(ROWS_FINGERPRINT):
        raise CheckpointError(
            f"{file}: of another model: its fingerprint is {packed.fingerprint[:16]}…; "
            f"accepted: {str(written.get(ROWS_FINGERPRINT))[:16]}… by config.json"
        )
    return packed


def serve_packed(model: Any, seat: Seat, packed: PackedFile, asked: Asked) -> Placement:
    """Let a model without tables read its rows out of a packed file.

    Args:
        model: the model, for its config and its modulators.
        seat: where it computes.
        packed: the file.
        asked: where rows are asked to be.

    Returns:
        What lives where.

    Raises:
        CheckpointError: the file is of another model.
        ConfigError: rows do not fit, with the numbers.
        DataError: counts that are none.
    """
    layout = packed.layout
    per_token = () if layout.rows_per_token is None else (layout.rows_per_token,)
    shape = (layout.vocab_size, *per_token, layout.width)
    check_shapes(model, dict.fromkeys(layout.layers, shape), layout.folded, packed.path)
    return serve(seat, packed, asked)
