"""Every parameter of an attached model in exactly one group."""

from __future__ import annotations

from torch import nn

from retoken.attach.rivals import Rival
from retoken.errors import AttachError

GROUPS = ("backbone", "tables", "scales", "routers")
OF_RIVALS = "projections"


def _group_of(model: nn.Module, name: str, parameter: nn.Parameter) -> str:
    if not name.startswith("retoken.") and ".retoken." not in name:
        return "backbone"
    for suffix, group in ((".table.weight", "tables"), (".scale", "scales"), (".router.weight", "routers")):
        if name.endswith(suffix):
            return group
    if isinstance(model.get_submodule(name.rpartition(".")[0]), Rival):
        return OF_RIVALS if parameter.dim() > 1 else "scales"
    raise AttachError(f"parameter {name!r} belongs to no group; known groups: {', '.join(GROUPS)}")


def param_groups(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """{group: (name, parameter)}, each parameter once (tied ones too).

    The groups are backbone, tables, scales (and all other vectors of what is attached) and routers; with a
    rival attached that has other matrices, projections.

    Raises:
        AttachError: a parameter fits no group, or the groups do not add up to the model.
    """
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in GROUPS}
    for name, parameter in model.named_parameters():
        groups.setdefault(_group_of(model, name, parameter), []).append((name, parameter))
    grouped = sum(p.numel() for group in groups.values() for _, p in group)
    total = sum(p.numel() for p in model.parameters())
    if grouped != total:
        raise AttachError(f"parameter groups hold {grouped} parameters, the model {total}")
    return groups
