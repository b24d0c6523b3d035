"""Every parameter of an attached model in exactly one group."""

from __future__ import annotations

from torch import nn

from retoken.errors import AttachError

GROUPS = ("backbone", "tables", "scales", "routers")


def _group_of(name: str) -> str:
    if not name.startswith("retoken.") and ".retoken." not in name:
        return "backbone"
    for suffix, group in ((".table.weight", "tables"), (".scale", "scales"), (".router.weight", "routers")):
        if name.endswith(suffix):
            return group
    raise AttachError(f"parameter {name!r} belongs to no group; known groups: {', '.join(GROUPS)}")


def param_groups(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """{"backbone", "tables", "scales", "routers"}: (name, parameter), each parameter once (tied ones too).

    Raises:
        AttachError: a parameter fits no group, or the groups do not add up to the model.
    """
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {name: [] for name in GROUPS}
    for name, parameter in model.named_parameters():
        groups[_group_of(name)].append((name, parameter))
    grouped = sum(p.numel() for group in groups.values() for _, p in group)
    total = sum(p.numel() for p in model.parameters())
    if grouped != total:
        raise AttachError(f"parameter groups hold {grouped} parameters, the model {total}")
    return groups
