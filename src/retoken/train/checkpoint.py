"""Checkpoints: a folder each, whole or absent. Safetensors and JSON only: nothing is unpickled."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from retoken.checkpoint.files import atomic_folder, read_json, write_json, writing
from retoken.errors import CheckpointError
from retoken.train.world import World

FORMAT_VERSION = 1
OPTIMIZER_FILE, RNG_FILE, STATE_FILE = "optimizer.safetensors", "rng.safetensors", "state.json"
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint folder that was found whole."""

    path: Path
    """Its folder, loadable with `from_pretrained`."""
    step: int
    """Optimizer steps done."""
    state: dict[str, Any]
    """What the loop put beside the tensors: reader position, clock, metrics not yet written."""


def save(
    root: Path,
    step: int,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    rng: dict[str, Tensor],
    state: Any,
) -> Path:
    """Write `root`/step-NNNNNN. Other checkpoints are not touched.

    Raises:
        TrainingError: The disk is full or refuses; what was there before is intact.
    """
    target = root / f"step-{step:06d}"
    with (
        writing(target, f"; last good checkpoint: {newest_path(root) or 'none'}"),
        atomic_folder(target) as folder,
    ):
        model.save_pretrained(folder)
        save_file(optimizer_tensors(optimizer), folder / OPTIMIZER_FILE)
        save_file(rng, folder / RNG_FILE)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        values = {"format_version": FORMAT_VERSION, "step": step, "files": sizes, "state": state}
        write_json(folder / STATE_FILE, values)
    return target


def prune(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in _found(root)[:-keep]:
        shutil.rmtree(path)


def newest_path(root: Path) -> Path | None:
    """The folder of the newest checkpoint."""
    found = _found(root)
    return found[-1] if found else None


def newest(root: Path) -> Checkpoint | None:
    """The newest checkpoint, checked; None where there is none yet.

    Raises:
        CheckpointError: A file of it is missing, truncated or foreign; deleting the folder goes back one.
    """
    path = newest_path(root)
    if path is None:
        return None
    found = read_json(path / STATE_FILE)
    if found.get("format_version") != FORMAT_VERSION or not {"step", "files", "state"} <= set(found):
        raise CheckpointError(
            f"{path / STATE_FILE}: not a training checkpoint's; delete {path} to go back to the one before"
        )
    for name, size in found["files"].items():
        actual = (path / name).stat().st_size if (path / name).is_file() else None
        if actual != size:
            what = "is missing" if actual is None else f"has {actual} bytes, {size} were written"
            raise CheckpointError(f"{path / name} {what}; delete {path} to go back to the checkpoint before")
    return Checkpoint(path=path, step=found["step"], state=found["state"])


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state by parameter name: "{name}:{what}"."""
    return {
        f"{name}:{what}": value.contiguous()
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        for what, value in optimizer.state[parameter].items()
    }


def load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer the state in a checkpoint folder.

    Raises:
        CheckpointError: It is another model's, or not readable.
    """
    tensors = _tensors(path / OPTIMIZER_FILE)
    states: dict[int, dict[str, Tensor]] = {}
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    for key, value in tensors.items():
        name, _, what = key.rpartition(":")
        if name not in names:
            raise CheckpointError(f"{path / OPTIMIZER_FILE}: holds parameter {name!r}, which the model lacks")
        states.setdefault(names.index(name), {})[what] = value.clone()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, (name, parameter) in enumerate(zip(names, parameters, strict=True)):
        shape = states.get(index, {}).get("exp_avg", torch.empty(0)).shape
        if shape != parameter.shape:
            raise CheckpointError(
                f"{path / OPTIMIZER_FILE}: {name} has shape {list(shape)}; expected {list(parameter.shape)}"
            )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": states, "param_groups": groups})


def rng_tensors(world: World) -> dict[str, Tensor]:
    """Random state of every process, [size, bytes]."""
    states = {"cpu": world.gather(torch.get_rng_state())}
    if world.device.type == "cuda":
        states["cuda"] = world.gather(torch.cuda.get_rng_state(world.device))
    return states


def load_rng(path: Path, world: World) -> None:
    """This process's random state back; with another number of processes, the first one's."""
    states = _tensors(path / RNG_FILE)
    rows = {name: state[world.rank if state.shape[0] == world.size else 0] for name, state in states.items()}
    torch.set_rng_state(rows["cpu"].clone())
    if world.device.type == "cuda" and "cuda" in rows:
        torch.cuda.set_rng_state(rows["cuda"].clone(), world.device)


def _found(root: Path) -> list[Path]:
    paths = [path for path in root.iterdir() if _NAME.fullmatch(path.name)] if root.is_dir() else []
    return sorted(paths, key=lambda path: int(path.name.removeprefix("step-")))


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not readable as safetensors ({error})") from None
