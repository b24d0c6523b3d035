"""The modulators of a served model: built without rows, which are loaded or placed afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig

from retoken.attach.absent import ROWS_FILE, AbsentTable
from retoken.attach.checkpoint import FIELD, is_folded, read_field
from retoken.attach.families import Family
from retoken.config import ModulatorConfig, require_modulator
from retoken.engines.vllm.options import asked_of
from retoken.nn import ModulatorStack, TokenTable
from retoken.nn.folded import build_folded
from retoken.nn.stack import build_modulator, index_for
from retoken.serving.load import check_shapes, field_of, packed_rows, rows_file_of, serve_packed
from retoken.serving.neighbours import ALONE, Neighbours, Ranks
from retoken.serving.packed import state_of
from retoken.serving.place import Asked, Placement, Seat, house
from retoken.serving.reader import FolderReader


class UnfilledTable(TokenTable):
    """A resident table whose rows come from the checkpoint: none are made up meanwhile."""

    def reset_parameters(self) -> None:
        """There is nothing to start from."""


class Plan(NamedTuple):
    """What a config says is attached, and where its rows are asked to be."""

    family: Family
    modulator: ModulatorConfig
    written: dict[str, Any]
    """The field of config.json."""
    asked: Asked

    @property
    def packed(self) -> bool:
        """Whether the folder's rows lie in a packed file."""
        return ROWS_FILE in self.written

    @property
    def placed(self) -> bool:
        """Whether rows are records, not parameters of the model."""
        return self.packed or not self.asked.as_they_are


class RowsFile(NamedTuple):
    """The packed file that rows were placed from."""

    path: Path
    state: tuple[int, ...]
    """Another file in its place has another."""

    @classmethod
    def of(cls, plan: Plan, folder: Path) -> RowsFile | None:
        """A folder's; None: its rows are not packed, or the file is missing."""
        path = rows_file_of(plan.written, folder) if plan.packed else None
        return cls(path, state_of(path)) if path is not None and path.is_file() else None

    def replaced(self) -> bool:
        """Whether there is another one now; one that has gone is still served."""
        return self.path.is_file() and state_of(self.path) != self.state


def plan_of(config: PreTrainedConfig, options: dict[str, Any]) -> Plan:
    """Read both.

    Raises:
        CheckpointError: the config does not say what is attached.
        ConfigError: options that are none.
    """
    family, modulator = read_field(config)
    require_modulator(modulator, "vLLM")
    written = getattr(config, FIELD)
    asked = asked_of(options, ROWS_FILE in written)
    plan = Plan(family, modulator, written, asked)
    if plan.placed and not plan.packed:
        asked.need_path()
    return plan


def build_stack(plan: Plan, config: PreTrainedConfig, dtype: torch.dtype, depth: int) -> ModulatorStack:
    """All modulators, on the default device, without their rows."""
    sizes, table = (config.vocab_size, config.hidden_size), AbsentTable if plan.placed else UnfilledTable
    folded, device = is_folded(plan.written), torch.get_default_device()

    def build() -> nn.Module:
        if folded:
            return build_folded(plan.modulator, *sizes, device, dtype, table)
        return build_modulator(plan.modulator, *sizes, depth, device, dtype, table)

    modulators = {i: build() for i in plan.modulator.table_layers(depth)}
    stack = ModulatorStack(plan.modulator, modulators, index_for(plan.modulator, config.vocab_size))
    return stack.requires_grad_(False).eval()


def put_rows(model: Any, plan: Plan, folder: Path, dtype: torch.dtype, device: torch.device) -> Placement:
    """Let a model's layers read the rows of a folder where they are asked to be; again after a reload.

    Raises:
        CheckpointError: a file is missing, truncated, foreign, changed, or of another model.
        ConfigError: what does not fit, with the numbers.
        DataError: counts that are none.
    """
    stack: ModulatorStack = model.retoken
    for module in stack.layers.values():
        module.table = _absent(module.table)  # pyright: ignore
    stack.source = None
    seat = Seat(stack, dtype, device, _workers())
    if plan.packed:
        packed = packed_rows(folder, field_of(folder), plan.asked, seat.neighbours)
        return serve_packed(model, seat, packed, plan.asked)
    reader = FolderReader(folder)
    check_shapes(model, reader.shapes(), reader.folded, folder)
    return house(seat, reader, plan.asked)


def _workers() -> Neighbours:
    """The engine's processes: those of one machine have one copy of what is in host memory."""
    from vllm.distributed.parallel_state import get_world_group  # pyright: ignore

    world = get_world_group()
    return ALONE if world.world_size == 1 else Ranks(world.cpu_group)


def _absent(table: Any) -> AbsentTable:
    """The shape of a table that is there no more."""
    if isinstance(table, AbsentTable):
        return table
    layout = table.source.layout
    per_token = () if layout.rows_per_token is None else (layout.rows_per_token,)
    return AbsentTable((layout.vocab_size, *per_token, layout.width), 1.0, None, None)
