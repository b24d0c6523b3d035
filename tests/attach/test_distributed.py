"""Two gloo ranks train what one process trains: DDP, and FSDP2 whichever way the tables are sharded."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import retoken
from retoken.errors import AttachError
from retoken.testing import assert_close, randomize, run_distributed, tiny_model, token_ids

CONFIGS = {
    "retoken": retoken.ReTokenConfig(),
    "mort": retoken.MoRTConfig(num_modulators=4, top_k=2, balance_coef=0.0),
    "mort-delay": retoken.MoRTConfig(num_modulators=4, top_k=2, injection_delay=1, balance_coef=0.0),
}
STEPS = 2


def _model(kind: str) -> nn.Module:
    model = retoken.attach(tiny_model("llama"), CONFIGS[kind]).train()
    randomize(model.retoken)
    return model


def _steps(model: nn.Module, batches: list[torch.Tensor], call=None) -> list[torch.Tensor]:
    """Plain SGD, so that the parameters show the gradients and nothing hides their scale."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for ids in batches:
        loss = (model if call is None else call)(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def _batches() -> list[torch.Tensor]:
    return [token_ids(4, 7, seed=step) for step in range(STEPS)]


def _full(model: nn.Module) -> dict[str, torch.Tensor]:
    """Whole tensors, whatever they are sharded over."""
    whole = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        whole[name] = value.full_tensor() if hasattr(value, "full_tensor") else value
    return whole


def _ddp(rank: int, world_size: int, kind: str) -> dict[str, torch.Tensor]:
    model = _model(kind)
    wrapped = DistributedDataParallel(model)
    _steps(model, [ids.chunk(world_size)[rank] for ids in _batches()], wrapped)
    assert retoken.modulators(wrapped).keys() == retoken.modulators(model).keys()
    return _full(model)


def _fsdp(rank: int, world_size: int, kind: str, checkpointing: bool) -> dict[str, torch.Tensor]:
    model = _model(kind)
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    mesh = init_device_mesh("cpu", (world_size,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if checkpointing:  # tables as units of their own, gathered when they are asked for rows
        for module in model.retoken.layers.values():
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    _steps(model, [ids.chunk(world_size)[rank] for ids in _batches()])
    assert all(hasattr(p, "full_tensor") for p in model.parameters())
    return _full(model)


def _expected(kind: str) -> dict[str, torch.Tensor]:
    model = _model(kind)
    _steps(model, _batches())
    return _full(model)


def _assert_ranks_equal_one_process(ranks: list[dict[str, torch.Tensor]], kind: str) -> None:
    expected, start = _expected(kind), _full(_model(kind))
    for rank, got in enumerate(ranks):
        for name, value in expected.items():
            assert_close(f"rank {rank} {name}", value, got[name], units=64)
    moved = [name for name, value in expected.items() if not torch.equal(value, start[name])]
    assert any("table" in name for name in moved) and any("scale" in name for name in moved)


@pytest.mark.parametrize("kind", CONFIGS)
def test_ddp(kind):
    _assert_ranks_equal_one_process(run_distributed(_ddp, 2, kind), kind)


@pytest.mark.parametrize(
    ("kind", "checkpointing"), [("retoken", False), ("mort", True), ("mort-delay", True)]
)
def test_fsdp2(kind, checkpointing):
    _assert_ranks_equal_one_process(run_distributed(_fsdp, 2, kind, checkpointing), kind)


def _sharded_mlps(rank: int, world_size: int, kind: str) -> dict[str, torch.Tensor]:
    model, bare, mesh = _model(kind), tiny_model("llama"), init_device_mesh("cpu", (world_size,))
    for layer in (*model.model.layers, *bare.model.layers):
        fully_shard(layer.mlp, mesh=mesh)
    fully_shard(model, mesh=mesh)
    _steps(model, [ids.chunk(world_size)[rank] for ids in _batches()])
    weights = _full(model)
    for refused in (lambda: retoken.detach(model), lambda: retoken.attach(bare, CONFIGS[kind])):
        with pytest.raises(AttachError, match=r"is wrapped by fully_shard; accepted: the bare model"):
            refused()
    return weights


@pytest.mark.parametrize("kind", ["retoken", "mort"])
def test_mlps_sharded_one_by_one(kind):
    _assert_ranks_equal_one_process(run_distributed(_sharded_mlps, 2, kind), kind)


def _failing(rank: int, world_size: int) -> None:
    raise ValueError(f"rank {rank} of {world_size} has a problem")


def test_a_failing_rank_is_reported_with_its_traceback():
    with pytest.raises(RuntimeError, match="ValueError: rank 0 of 2 has a problem"):
        run_distributed(_failing, 2)
