"""The ranks that share tables, and their own process groups."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from retoken.errors import ConfigError


@dataclass(frozen=True, slots=True)
class TableMesh:
    """A mesh (replica, emp): `emp` neighbouring ranks hold one copy of the tables among them.

    Every rank trains on its own part of the batch: the emp axis is a second use of the data-parallel ranks.
    The groups carry the tables' traffic only, so that it can overlap with the backbone's.
    """

    mesh: DeviceMesh
    """(replica, emp)."""

    @property
    def emp(self) -> ProcessGroup:
        """The ranks among which one copy of the tables is divided."""
        return self.mesh.get_group("emp")

    @property
    def replica(self) -> ProcessGroup:
        """The ranks that hold the same part of the tables."""
        return self.mesh.get_group("replica")

    @property
    def emp_size(self) -> int:
        """Ranks of the emp axis."""
        return self.mesh.size(1)

    @property
    def replicas(self) -> int:
        """Copies of the tables."""
        return self.mesh.size(0)

    @property
    def emp_rank(self) -> int:
        """This rank on the emp axis."""
        return self.mesh.get_local_rank("emp")

    @property
    def world(self) -> int:
        """All ranks."""
        return self.mesh.size()


def open_mesh(device_type: str, emp_size: int = 0, timeout: timedelta | None = None) -> TableMesh:
    """The mesh over all ranks of the default process group; a collective.

    Args:
        device_type: "cpu" or "cuda".
        emp_size: ranks that share one copy of the tables; 0: all.
        timeout: of the tables' collectives; None: PyTorch's default.

    Raises:
        ConfigError: `emp_size` does not divide the number of ranks.
    """
    world = dist.get_world_size()
    emp_size = emp_size or world
    if emp_size < 1 or world % emp_size:
        raise ConfigError(f"emp_size is {emp_size} with {world} ranks; accepted: a divisor of {world}")
    grid = [list(range(start, start + emp_size)) for start in range(0, world, emp_size)]
    emp = _own_group(grid, timeout)
    replica = _own_group([list(column) for column in zip(*grid, strict=True)], timeout)
    names = ("replica", "emp")
    return TableMesh(DeviceMesh.from_group([replica, emp], device_type, mesh=grid, mesh_dim_names=names))


def _own_group(ranks: list[list[int]], timeout: timedelta | None) -> ProcessGroup:
    """This rank's group among `ranks`; every rank takes part in making each."""
    groups = [dist.new_group(members, timeout=timeout) for members in ranks]
    return next(g for g, members in zip(groups, ranks, strict=True) if dist.get_rank() in members)  # pyright: ignore
