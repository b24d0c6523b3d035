"""Sharded tables give the dense model's losses, outputs and gradients: every layout, exchange and size."""

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import retoken
from retoken.attach import decoder_layers
from retoken.optim import total_norm
from retoken.parallel import ignored_parameters, leave_to_tables, open_mesh, shard_tables
from retoken.testing import assert_close, randomize, run_distributed, tiny_model, token_ids

LENGTH = 7
CASES = [
    ("retoken", "V", "early"),
    *(
        ("mort", layout, exchange)
        for layout in ("V", "E", "VxE")
        for exchange in ("early", "routed", "mixed")
    ),
]
OPTIONS = {
    "plain": {},
    "block input": {"router_input": "block_input"},
    "delay": {"injection_delay": 1},
}


def build(kind, **options):
    config = retoken.ReTokenConfig() if kind == "retoken" else retoken.MoRTConfig(**options)
    model = retoken.attach(tiny_model("llama", dtype=torch.float64), config).train()
    randomize(model.retoken)
    return model


def batches(case):
    """Two micro-batches of four rows each: ordinary, or unlucky ones."""
    ids = [token_ids(4, LENGTH, seed=seed) for seed in (1, 2)]
    if case == "one id":
        ids[0][:] = 8
    if case == "one owner":
        ids = [x // 4 * 4 for x in ids]
    return ids


def passes(model, forward, parts, checkpointing):
    """Losses of the micro-batches, gradients added up; no loss depends on the split of a batch."""
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    losses = []
    for ids in parts:
        losses.append(forward(input_ids=ids, labels=ids, use_cache=False).loss)
    sum(losses).backward()
    return torch.stack([x.detach() for x in losses])


def dense_of(kind, options, case):
    model = build(kind, balance_coef=0.0, **options) if kind == "mort" else build(kind)
    losses = passes(model, model, batches(case), False)
    return losses, {name: p.grad for name, p in model.named_parameters()}


def sharded_runs(rank, world_size, cases, options, emp_size, case, checkpointing):
    """One rank's share of dense_of for each of `cases`."""
    mesh = open_mesh("cpu", emp_size)
    return [sharded_run(rank, world_size, mesh, *each, options, case, checkpointing) for each in cases]


def sharded_run(rank, world_size, mesh, kind, layout, exchange, options, case, checkpointing):
    """Losses, the whole tables' gradients put together, and what was sent."""
    model = build(kind, balance_coef=0.0, **options) if kind == "mort" else build(kind)
    distinct = exchange != "each"
    source = shard_tables(model.retoken, mesh, layout, exchange if distinct else "early", distinct)
    leave_to_tables(model)
    wrapped = torch.nn.parallel.DistributedDataParallel(model)
    each = 4 // world_size
    parts = [ids[rank * each : (rank + 1) * each] for ids in batches(case)]
    losses = passes(model, wrapped, parts, checkpointing)
    grads = {}
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        if name.endswith("table.weight"):
            assert grad.is_sparse and grad.is_coalesced()
            grad = whole(grad.to_dense(), source, mesh)
        grads[name] = grad
    return losses, grads, dict(source.traffic.sent)


def whole(part, source, mesh):
    layout = source.layout
    full = torch.zeros(layout.vocab_size, *((layout.per_token,) if part.dim() == 3 else ()), part.shape[-1])
    full = full.to(part.dtype)
    layout.put(full, mesh.emp_rank, part)
    torch.distributed.all_reduce(full, group=mesh.emp)
    return full


def check(cases, world_size, *, options=None, emp_size=0, case="plain", checkpointing=False):
    options = options or {}
    results = run_distributed(
        sharded_runs, world_size, cases, options, emp_size, case, checkpointing, timeout=400
    )
    for index, (kind, layout, exchange) in enumerate(cases):
        where = f"{kind}, {layout}, {exchange}: "
        losses, grads = dense_of(kind, options if kind == "mort" else {}, case)
        found = [ranks[index] for ranks in results]
        assert_close(where + "losses", losses, sum(x[0] for x in found) / world_size)
        for _, theirs, _ in found:
            for name, grad in grads.items():
                assert_close(f"{where}gradient of {name}", grad, theirs[name], units=256)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_layout_and_exchange_equals_dense(world_size):
    check(CASES, world_size)


@pytest.mark.parametrize("name", ["block input", "delay"])
def test_router_inputs_and_delay(name):
    check([case for case in CASES if case[0] == "mort"], 2, options=OPTIONS[name])


def test_recomputed_activations():
    check(CASES, 2, checkpointing=True)


EACH = [("retoken", "V", "each"), *(("mort", layout, "each") for layout in ("V", "E", "VxE"))]


def test_every_token_asking_for_itself():
    check(EACH, 4)
    check(EACH, 2, checkpointing=True, case="one owner")
    check(EACH, 4, emp_size=2)


def test_replicas_of_sharded_tables():
    check(CASES, 4, emp_size=2)
    check([("mort", "V", "early")], 4, emp_size=1)


@pytest.mark.parametrize("case", ["one id", "one owner"])
def test_unlucky_batches(case):
    check(CASES, 4, case=case)


def an_empty_request(rank, world_size, exchange):
    """Rank 1 has no tokens at all; nobody waits for it."""
    model = build("mort")
    source = shard_tables(model.retoken, open_mesh("cpu"), "VxE", exchange)
    ids = token_ids(2, LENGTH) if rank != 1 else torch.empty(0, LENGTH, dtype=torch.long)
    fetch = source.fetch(ids)
    chosen = torch.zeros(*ids.shape, 3, dtype=torch.long) + torch.arange(3)
    weights = torch.full(chosen.shape, 1 / 3, dtype=torch.float64, requires_grad=True)
    mixed = [fetch.arrived(layer).mix(chosen, weights) for layer in source.weights()]
    torch.stack(mixed).sum().backward()
    return [weight.grad.values().sum().item() for weight in source.weights().values()]


@pytest.mark.parametrize("exchange", ["early", "routed", "mixed"])
def test_a_rank_without_tokens_holds_nobody_up(exchange):
    sums = run_distributed(an_empty_request, 4, exchange)
    # every other rank reads 14 tokens, whose mixture's D numbers have gradient 1, averaged over 4 ranks
    for layer in zip(*sums, strict=True):
        assert sum(layer) == pytest.approx(3 * 14 * 32 / 4)


def same_bits(rank, world_size):
    torch.use_deterministic_algorithms(True)
    return [sharded_runs(rank, world_size, CASES, {}, 2, "plain", False) for _ in range(2)]


def test_two_runs_give_the_same_bits():
    for first, second in run_distributed(same_bits, 4, timeout=400):
        for (losses, grads, sent), (losses2, grads2, sent2) in zip(first, second, strict=True):
            assert torch.equal(losses, losses2) and sent == sent2
            assert all(torch.equal(grads[name], grads2[name]) for name in grads)


def fsdp_run(rank, world_size, kind, layout, exchange):
    model = build(kind, balance_coef=0.0) if kind == "mort" else build(kind)
    mesh = open_mesh("cpu")
    source = shard_tables(model.retoken, mesh, layout, exchange)
    ignored = ignored_parameters(model)
    for layer in decoder_layers(model):
        fully_shard(layer)
    fully_shard(model, ignored_params=ignored)
    each = 4 // world_size
    parts = [ids[rank * each : (rank + 1) * each] for ids in batches("plain")]
    losses = [model(input_ids=ids, labels=ids, use_cache=False).loss for ids in parts]
    sum(losses).backward()
    norm = total_norm(model.parameters(), source.sum_over_shards)
    grads, divided = {}, 0
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        if name.endswith("table.weight"):
            assert not isinstance(parameter, DTensor) and grad.is_sparse
            grads[name] = whole(grad.to_dense(), source, mesh)
        else:
            assert isinstance(parameter, DTensor)
            divided += 1
            grads[name] = grad.full_tensor()
    return torch.stack([x.detach() for x in losses]), grads, norm


@pytest.mark.parametrize(
    ("kind", "layout", "exchange"),
    [("retoken", "V", "early"), ("mort", "VxE", "early"), ("mort", "V", "mixed")],
)
def test_fsdp_divides_the_backbone_and_leaves_tables_alone(kind, layout, exchange):
    losses, grads = dense_of(kind, {}, "plain")
    norm = torch.nn.utils.get_total_norm(list(grads.values()))
    results = run_distributed(fsdp_run, 2, kind, layout, exchange)
    assert_close("losses", losses, sum(found[0] for found in results) / 2)
    for _, theirs, their_norm in results:
        assert_close("norm", norm, their_norm, units=256)
        for name, grad in grads.items():
            assert_close(f"gradient of {name}", grad, theirs[name], units=256)
