"""Modulators inside vLLM's compiled graph: the compiler reads rows where they lie, in the loop that uses
them.

What a graph reads of a pass are numbers of rows, at an address that stays: they are put there before it runs.
Rows are its inputs as weights are. Everything else, and a pass that is not compiled, goes through `ops`.
"""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import CompilationMode, VllmConfig

from retoken.engines.vllm.sites import Place
from retoken.errors import AttachError, CheckpointError
from retoken.nn import Landing, ModulatorStack
from retoken.nn.kernels import TRACED
from retoken.serving.shelf import Shelf, Wanted
from retoken.serving.source import PlacedRows
from retoken.serving.stored import StoredRows


class InGraph:
    """One layer's modulator, as the modules of a graph call it: a `Way`."""

    def __init__(self, module: nn.Module, slots: Tensor) -> None:
        """
        Args:
            module: the modulator.
            slots: [most positions] or [most positions, H] int64: numbers of the rows of the pass under way.
        """
        self.module, self.slots = module, slots
        self.stored: tuple[Tensor, Tensor | None] | None = None
        """As `RecordLayout.views` has them; None: they are in the modulator's own table."""
        self.landing: Landing | None = None
        """What was chosen, on its way through the graph."""
        self.traced = False
        """Whether a graph that has the modulator was made in this process."""

    def gate(self, increment: Tensor) -> Tensor:
        """As `Way`."""
        return self._modulate(increment).view(increment.shape)

    def route(self, carried: Tensor, read: Tensor) -> Tensor:
        """As `Way`."""
        self.landing, _ = self._modulate(read)
        return carried

    def add(self, increment: Tensor) -> Tensor:
        """As `Way`."""
        landing, self.landing = self.landing, None
        return landing.add_to(_flat(increment)).view(increment.shape)  # pyright: ignore

    def _modulate(self, states: Tensor) -> Any:
        self._note()
        flat = _flat(states)
        here = self.slots.narrow(0, 0, flat.shape[0])
        own: Any = self.module.table
        stored = (own.weight, None) if self.stored is None else self.stored
        return self.module(flat, here, StoredRows(here, *stored))

    @torch.compiler.assume_constant_result
    def _note(self) -> None:
        """Keep that a graph has it; in the graph this is nothing."""
        self.traced = True


def _flat(states: Tensor) -> Tensor:
    return states if states.dim() == 2 else states.reshape(-1, states.shape[-1])


class InGraphPasses:
    """Begins and ends passes of compiled graphs that have all modulators in them."""

    def __init__(self, stack: ModulatorStack, modules: Mapping[int, nn.Module], positions: int) -> None:
        """
        Args:
            stack: all modulators.
            modules: {layer: its modulator}.
            positions: the most that a pass has.
        """
        heads = (stack.index.rows_per_position,) if stack.config.sums_rows and stack.index is not None else ()
        self.stack, self.slots = stack, torch.zeros(positions, *heads, dtype=torch.int64)
        self.layers = {layer: InGraph(module, self.slots) for layer, module in modules.items()}
        self._shelf: Shelf | None = None
        self._wanted: Wanted | None = None
        self._known, self._refused = False, ""

    def enter(self, places: Mapping[int, list[Place]]) -> None:
        """Let modules have the modulators in the graph that is to be made of them: {layer: where}."""
        for number, own in places.items():
            layer = self.layers[number]
            layer.module.kernels = TRACED  # pyright: ignore
            for place in own:
                place.give(layer)

    def find_rows(self) -> bool:
        """Learn where rows lie, once they are loaded or placed; false where no view of records has them."""
        source: PlacedRows | None = self.stack.source  # pyright: ignore
        if source is None:
            return True
        self._shelf = source.shelf
        for number, layer in self.layers.items():
            layer.stored = source.views(number)
        return all(layer.stored is not None for layer in self.layers.values())

    def find_rows_again(self) -> None:
        """The same after others were loaded or placed: a graph is made for rows as they were.

        Raises:
            CheckpointError: of another type, or elsewhere.
        """
        before = [_form(layer.stored) for layer in self.layers.values()]
        self.find_rows()
        for layer, form in zip(self.layers.values(), before, strict=True):
            if (now := _form(layer.stored)) != form:
                self._refused = (
                    f"rows are {now} now, and passes were compiled for {form}; accepted: rows of the same "
                    "type and place, or a new start"
                )
                raise CheckpointError(self._refused)

    def begin(self, index: Tensor) -> InGraphPasses:
        """A pass starts whose positions read the rows `index`, [T] or [T, H].

        Raises:
            AttachError: it has more positions than the engine said.
            CheckpointError: the rows are no longer those that the graph was made for.
        """
        if self._refused:
            raise CheckpointError(self._refused)
        if len(index) > len(self.slots):
            raise AttachError(f"a pass has {len(index)} positions; accepted: {len(self.slots)} by its config")
        self.slots[: len(index)] = index
        if self._shelf is not None and self._shelf.disk is not None:
            self._wanted = self._shelf.wanted(index)
            self._shelf.begin(self._wanted)
        return self

    def finish(self) -> None:
        """The pass is over: check what it read from a file, and, once, that a graph had all modulators.

        Raises:
            AttachError: one was left out.
            CheckpointError: a record has changed since it was written.
        """
        if self._wanted is not None and self._shelf is not None:
            self._shelf.check(self._wanted)
            self._wanted = None
        if not self._known:
            self._known = True
            traced = [layer.traced for layer in self.layers.values()]
            if any(traced) and not all(traced):
                raise AttachError(
                    f"{sum(traced)} of {len(traced)} modulated layers are in the compiled graph; this "
                    "version of vLLM runs its layers in a way that is not known here"
                )


def _form(stored: tuple[Tensor, Tensor | None] | None) -> str:
    """What a graph takes for granted of its input."""
    if stored is None:
        return "no records"
    rows = stored[0]
    return f"{rows.dtype} {list(rows.shape)}, {rows.stride(0) * rows.element_size()} bytes apart"


def put_in_graph(
    stack: ModulatorStack, places: Mapping[int, list[Place]], vllm_config: VllmConfig
) -> InGraphPasses | None:
    """Let the modules of a graph to be made have the modulators in it.

    None: no graph is made, or rows are in no view.

    Args:
        stack: all modulators, their rows loaded or placed.
        places: {layer: where it is asked for}.
        vllm_config: the engine's.
    """
    if not _compiles(vllm_config):
        return None
    scheduled = vllm_config.scheduler_config
    positions = scheduled.max_num_batched_tokens + scheduled.max_num_seqs
    passes = InGraphPasses(stack, {layer: stack.layers[str(layer)] for layer in places}, positions)
    if not passes.find_rows() or not _tell_cache(vllm_config, passes):
        return None
    passes.enter(places)
    return passes


def _tell_cache(vllm_config: VllmConfig, passes: InGraphPasses) -> bool:
    """Let vLLM's cache on disk tell graphs apart by what they take for granted; false where it cannot.

    It takes up the graph of an earlier start by a hash of its options, and checks nothing of a graph's
    inputs: a folder may have been written again meanwhile, with rows of another type.
    """
    if not isinstance(vllm_config.additional_config, dict):
        return False
    forms = {layer: [type(one.module).__name__, _form(one.stored)] for layer, one in passes.layers.items()}
    granted = {"layers": forms, "modulator": passes.stack.config.to_dict(), "slots": list(passes.slots.shape)}
    vllm_config.additional_config = {**vllm_config.additional_config, "retoken_graph": granted}
    return True


def _compiles(vllm_config: VllmConfig) -> bool:
    """Whether passes are compiled, on a CPU: what was tried with rows in graphs."""
    on_cpu = vllm_config.device_config.device_type == "cpu"
    return on_cpu and vllm_config.compilation_config.mode != CompilationMode.NONE
