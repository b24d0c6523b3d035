"""A table goes to ranges of token ids and back without losing a bit, from any layout."""

import torch

from retoken.parallel import Canonical, Layout, open_mesh
from retoken.testing import run_distributed

V, E, D = 131, 5, 3


def there_and_back(rank, world_size, emp_size):
    mesh = open_mesh("cpu", emp_size)
    for name in ("V", "E", "VxE"):
        layout = Layout.make(name, mesh.emp_size, V, E)
        canonical = Canonical(layout, mesh)
        for shape in ((V, E, D), (V,)):
            full = torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)
            local = layout.take(full, mesh.emp_rank)
            assert canonical.global_shape(local) == full.shape
            chunk = canonical.to_canonical(local)
            chunks = full.chunk(world_size)
            want = chunks[rank] if rank < len(chunks) else full[:0]
            assert torch.equal(chunk, want), (name, shape)
            assert torch.equal(canonical.from_canonical(chunk, local), local)
    layout = Layout.make("V", mesh.emp_size, V, 1)
    full = torch.randn(V, D, generator=torch.Generator().manual_seed(0))
    local = layout.take(full, mesh.emp_rank)
    chunk = Canonical(layout, mesh).to_canonical(local)
    assert torch.equal(Canonical(layout, mesh).from_canonical(chunk, local), local)
    return chunk.shape[0]


def test_every_layout():
    assert run_distributed(there_and_back, 4, 0) == [33, 33, 33, 32]
    assert run_distributed(there_and_back, 4, 2) == [33, 33, 33, 32]
    assert run_distributed(there_and_back, 4, 1) == [33, 33, 33, 32]
    assert run_distributed(there_and_back, 1, 0) == [131]
