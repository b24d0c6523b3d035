"""The models that take turns: one backbone, and around its weights every variant in every placement."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import retoken
from retoken import presets
from retoken.attach.kernels import KernelsName
from retoken.bench.decode import records
from retoken.bench.decode.passes import CompiledPasses, EagerPasses, Passes
from retoken.bench.decode.prompts import Prompt
from retoken.bench.decode.synchronous import SynchronousRows
from retoken.config import ModulatorConfig, MoRTConfig, ReTokenConfig
from retoken.errors import ConfigError
from retoken.serving.layout import RecordLayout
from retoken.serving.packed import PackedFile
from retoken.serving.source import PlacedRows, PlacedTable
from retoken.serving.tiers import MemoryTier, Tier, assign

VARIANTS: dict[str, ModulatorConfig] = {
    "retoken": ReTokenConfig(),
    "mort-2of4": MoRTConfig(num_modulators=4, top_k=2),
    "mort-3of5": MoRTConfig(num_modulators=5, top_k=3),
    "mort-2of4-early": MoRTConfig(num_modulators=4, top_k=2, router_input="block_input"),
    "mort-2of4-delayed": MoRTConfig(num_modulators=4, top_k=2, injection_delay=1),
}
BASELINE = "baseline"
IN_MEMORY = {"device": "device", "host": "host", "host-direct": "host", "sync-host": "host"}
"""Which tier placements have that no file is read for."""


def _nothing() -> None:
    """For a case that needs no preparation."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model in one placement."""

    variant: str
    placement: str
    """Where rows are and how they are fetched; "resident": in the model's own tables."""
    model: PreTrainedModel
    passes: Callable[[PreTrainedModel, int, int], Passes] = EagerPasses
    """Makes them for a model, a batch and the longest sequence."""
    packed: PackedFile | None = None
    """The file that rows are read from, if any are."""
    bytes_in_use: int = 0
    """Of the records of all tokens that are met."""
    prepare: Callable[[Tensor], None] = lambda ids: None
    """Before a run over some ids; not timed."""
    between: Callable[[], None] = _nothing
    """Before each pass; not timed."""

    @property
    def undisturbed(self) -> bool:
        """Whether nothing is done between its passes."""
        return self.between is _nothing

    @property
    def rounds_otherwise(self) -> bool:
        """Whether its sums are in another order: of plain operators, or of a compiler's loops over tables."""
        by_a_compiler = self.passes is CompiledPasses and self.placement == "resident"
        return by_a_compiler or self.placement.startswith("sync")

    @property
    def name(self) -> str:
        """For tables."""
        return self.variant if self.variant == BASELINE else f"{self.variant} {self.placement}"

    def passes_over(self, prompt: Prompt) -> Passes:
        """Over this prompt, and others of its size."""
        return self.passes(self.model, len(prompt.ids), prompt.ids.shape[1] + prompt.following.shape[1])


def random_backbone(
    preset: str, dtype: torch.dtype, vocab_size: int = 0, device: str = "cpu"
) -> PreTrainedModel:
    """A preset's backbone with random weights; `vocab_size` 0: the preset's."""
    found = presets.get(preset)
    size = vocab_size or found.vocab_size
    config = AutoConfig.for_model(found.model_type, vocab_size=size, **found.backbone)
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """A second model around the same parameters and buffers."""
    shared: dict[int, Any] = {id(x): x for x in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def attach_source(model: PreTrainedModel, config: ModulatorConfig, source: Any) -> PreTrainedModel:
    """Attach modulators whose rows come through a source; no table is made."""
    layers = iter(source.layout.layers)
    torch.manual_seed(1)
    retoken.attach(model, config, table=lambda *shape: PlacedTable(next(layers), source))
    stack: Any = model.retoken
    stack.source = source
    return model


def layout_for(model: PreTrainedModel, config: ModulatorConfig, rows: str) -> RecordLayout:
    """The records of a variant of this backbone."""
    text = model.config.get_text_config()
    return RecordLayout(
        vocab_size=text.vocab_size,
        layers=tuple(config.table_layers(text.num_hidden_layers)),
        rows_per_token=config.num_modulators if isinstance(config, MoRTConfig) else None,
        width=text.hidden_size,
        rows=rows,
    )


@dataclass(frozen=True, kw_only=True)
class Shelves:
    """One variant's records: the file, and in memory those of the tokens that the bench meets."""

    packed: PackedFile
    memory: dict[str, MemoryTier]

    @classmethod
    def make(
        cls, folder: Path, name: str, layout: RecordLayout, tokens: Tensor, tiers: Sequence[str]
    ) -> Shelves:
        """Write the file and fill the tiers in memory.

        Raises:
            ConfigError: the records of the tokens do not fit into memory.
        """
        path = folder / f"{name}.safetensors"
        records.write(path, layout, tokens)
        filler = PackedFile(path)
        memory = {tier: MemoryTier(records.memory(layout, len(tokens), tier)) for tier in tiers}
        for ids in tokens.split(records.CHUNK):
            found = filler.gather(ids)
            for tier in memory.values():
                tier.records[ids] = found
        filler.release()
        return cls(packed=PackedFile(path), memory=memory)  # no record was read by this one

    def source(self, placement: str, dtype: torch.dtype) -> Any:
        """Of the rows, as a placement has them."""
        layout, cpu = self.packed.layout, torch.device("cpu")
        where = IN_MEMORY.get(placement, "disk")
        tier: Tier = self.memory.get(where, self.packed)
        ahead: Any = {"chosen-cold": "chosen", "none-cold": "none"}.get(placement, "record")
        homes = assign(layout, where, {}, None)
        source = PlacedRows(layout, {where: tier}, homes, dtype, cpu, prefetch=ahead)
        return _synchronous(source) if placement.startswith("sync") else source


def preset_cases(
    backbone: PreTrainedModel,
    variants: Sequence[str],
    placements: Sequence[str],
    *,
    rows: str,
    tokens: Tensor,
    folder: Path,
) -> list[Case]:
    """The plain backbone, then every variant in every placement, with random rows, on a CPU.

    Raises:
        ConfigError: a device's own gather is asked for.
    """
    if "host-direct" in placements:
        raise ConfigError("--placements has host-direct on a CPU; accepted there: all others")
    cases = [Case(variant=BASELINE, placement="", model=backbone)]
    tiers = [tier for tier in ("device", "host") if any(tier in placement for placement in placements)]
    for variant in variants:
        layout = layout_for(backbone, VARIANTS[variant], rows)
        shelves = Shelves.make(folder, variant, layout, tokens, tiers)
        for placement in placements:
            source = shelves.source(placement, backbone.dtype)
            model = attach_source(twin(backbone), VARIANTS[variant], source)
            packed = shelves.packed if placement.endswith(("-warm", "-cold")) else None
            case = _case(variant, placement, model, packed, [shelves.packed])
            cases.append(replace(case, bytes_in_use=len(tokens) * layout.record_bytes))
    return cases


def _case(
    variant: str,
    placement: str,
    model: PreTrainedModel,
    packed: PackedFile | None,
    opened: Sequence[PackedFile],
) -> Case:
    case = Case(variant=variant, placement=placement, model=model, packed=packed)
    if packed is None:
        return case
    if placement.endswith("-cold"):
        return replace(case, between=lambda: records.drop_cache(opened))
    return replace(case, prepare=lambda ids: records.warm_cache(packed.path, ids))


def left_alone(case: Case) -> Case:
    """The same with nothing done to what is cached of its file: a limit on memory decides."""
    return replace(case, prepare=lambda ids: None, between=_nothing)


def compiled(case: Case) -> Case:
    """The same, read by `torch.compile`, with modulators that compute as it can fuse."""
    if case.variant != BASELINE:
        retoken.use_kernels(case.model, "traced")
    return replace(case, passes=CompiledPasses)


def trained_cases(model: PreTrainedModel, placements: Sequence[str], *, folder: Path) -> list[Case]:
    """A trained model's plain backbone, the model as it is ("resident"), and its placements.

    Raises:
        ConfigError: the paper's protocol is asked for on a GPU; or a device's own gather, which the system
            does not allow.
    """
    plain = Case(variant=BASELINE, placement="", model=retoken.detach(twin(model)))
    return [plain, *_placed_cases(model, "trained", placements, folder)]


def resident_cases(
    backbone: PreTrainedModel,
    variants: Sequence[str],
    placements: Sequence[str],
    *,
    kernels: KernelsName,
    folder: Path,
) -> list[Case]:
    """The plain backbone, then every variant with whole random tables beside it ("resident"), and placed.

    Raises:
        ConfigError: as `trained_cases`; or kernels that do not run here.
    """
    cases = [Case(variant=BASELINE, placement="", model=backbone)]
    for variant in variants:
        torch.manual_seed(1)
        model = retoken.attach(twin(backbone), VARIANTS[variant]).eval()
        retoken.use_kernels(model, kernels)
        cases += _placed_cases(model, variant, placements, folder)
    return cases


def _placed_cases(
    model: PreTrainedModel, variant: str, placements: Sequence[str], folder: Path
) -> list[Case]:
    for placement in placements:
        if placement.startswith("sync") and model.device.type != "cpu":
            raise ConfigError(f"--placements has {placement} on a GPU; accepted there: all but sync-*")
    path, opened = folder / f"{variant}.safetensors", []
    cases = [Case(variant=variant, placement="resident", model=model)]
    for placement in placements:
        placed = twin(model)
        first, _, how = placement.partition("-")
        tier: Any = IN_MEMORY.get(placement, "disk")
        ahead: Any = first if first in ("chosen", "none") else "record"
        at = path if tier == "disk" else None
        by: Any = "device" if how == "direct" else "host"
        options: dict[str, Any] = {"rows": _row_type(model), "prefetch": ahead, "gather": by}
        found = retoken.place(placed, tier, path=at, **options)
        if how == "direct" and found.gathered_by != by:
            raise ConfigError(
                f"--placements has {placement}, and no GPU may read host memory; accepted: host"
            )
        stack: Any = placed.retoken
        packed = stack.source.packed if tier == "disk" else None
        opened += [packed] if packed is not None else []
        if first == "sync":
            stack.source = _synchronous(stack.source)
        cases.append(_case(variant, placement, placed, packed, opened))
    return cases


def _synchronous(source: PlacedRows) -> SynchronousRows:
    """The same records by the paper's protocol."""
    views: Any = {layer: source.views(layer) for layer in source.layout.layers}
    return SynchronousRows(source.layout, views, source.dtype)


def _row_type(model: PreTrainedModel) -> str:
    return str(model.dtype).removeprefix("torch.")
