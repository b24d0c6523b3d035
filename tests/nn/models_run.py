"""Whole attached models on the Triton kernels, against the plain operators: on a GPU, or interpreted.

A process of its own, as Triton decides at its import whether it interprets: run by test_kernels.py under
TRITON_INTERPRET=1, and by `make test-gpu` where there is a GPU. Not collected by name.
"""

import copy
from collections import Counter

import pytest
import torch

import retoken
from retoken.nn import kernels as kinds
from retoken.nn import triton as by_triton
from retoken.rows import train_by_rows, train_from_host
from retoken.testing import (
    assert_close,
    assert_grads_close,
    kernel_device,
    randomize,
    round_as_a_gpu_does,
    run_distributed,
    tiny_model,
    token_ids,
)

CONFIGS = {
    "retoken": retoken.ReTokenConfig(),
    "retoken-some": retoken.ReTokenConfig(norm="l2", layers=(0, 2)),
    "mort": retoken.MoRTConfig(num_modulators=4, top_k=2, balance_coef=0.1),
    "mort-block_input": retoken.MoRTConfig(router_input="block_input", balance_coef=0.1),
    "mort-one": retoken.MoRTConfig(num_modulators=3, top_k=1),
    "mort-delay": retoken.MoRTConfig(injection_delay=1, balance_coef=0.1),
}
DEVICE = kernel_device()
INTERPRETED = DEVICE.type == "cpu"
IDS = token_ids().to(DEVICE)
OPS = ("folded_gate_rows", "folded_row_into", "gate_rows", "mix_rows_into", "route_tokens")


@pytest.fixture(autouse=True)
def rounding(monkeypatch):
    if INTERPRETED:
        round_as_a_gpu_does(monkeypatch)


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """How often each kernel was called."""
    found = Counter()

    def counted(name, op):
        def call(*args):
            found[name] += 1
            return op(*args)

        return call

    for name in OPS:
        monkeypatch.setattr(by_triton, name, counted(name, getattr(by_triton, name)))
    return found


def pair(name, dtype=torch.float32, family="llama", prepare=None):
    """An attached model and its twin on the Triton kernels; `prepare`d before they move to the device."""
    eager = retoken.attach(tiny_model(family, dtype=dtype), CONFIGS[name]).train()
    randomize(eager.retoken)
    if prepare is not None:
        prepare(eager.retoken)
    eager.to(DEVICE)
    model = copy.deepcopy(eager)
    retoken.use_kernels(model, "triton")
    return eager, model


def run(model, ids=IDS):
    """Loss with the balance loss, after its backward pass."""
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss + retoken.balance_loss(model)
    loss.backward()
    return loss.detach()


def expected_calls(name, training=True):
    """{kernel: calls} of one forward pass of a model of three layers."""
    count = len(CONFIGS[name].table_layers(3))
    if name == "mort-delay":
        return {}
    if name.startswith("retoken"):
        return {"gate_rows": count}
    return {"mix_rows_into": count} | ({} if training else {"route_tokens": count})


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_and_all_gradients(name, calls):
    eager, model = pair(name)
    assert_close("loss", run(eager), run(model))
    assert calls == expected_calls(name)
    assert_grads_close(eager, model, units=256)
    if name == "mort-delay":
        assert torch.equal(run(eager), run(model))


@pytest.mark.parametrize("name", ["retoken", "mort"])
def test_bfloat16_models(name):
    """Against float32 on the same bits: no farther from it than twice as far as the operators are."""
    eager, model = pair(name, torch.bfloat16)
    wide = copy.deepcopy(eager).float()
    with torch.no_grad():
        for other in (eager, model, wide):
            other.eval()
        exact, ours, theirs = (m(input_ids=IDS).logits.double() for m in (wide, model, eager))
    assert (ours - exact).norm() <= 2 * (theirs - exact).norm()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["retoken", "mort", "mort-block_input"])
def test_row_sparse_gradients(name, checkpointing, calls):
    eager, model = pair(name)
    for each in (eager, model):
        train_by_rows(each.retoken)
        if checkpointing:
            each.gradient_checkpointing_enable({"use_reentrant": False})
    assert_close("loss", run(eager), run(model))
    assert sum(calls.values()) == 3 * (1 + checkpointing)
    theirs = dict(model.named_parameters())
    for key, parameter in eager.named_parameters():
        grad, other = parameter.grad, theirs[key].grad
        if key.endswith("table.weight"):
            assert other.is_sparse and torch.equal(grad.indices(), other.indices())
            grad, other = grad.values(), other.values()
        assert_close(key, grad, other, units=256)


def test_tables_in_host_memory(calls):
    """Training copies rows to the device; without gradients they are looked up in host memory."""
    eager, model = pair("mort", prepare=lambda stack: train_from_host(stack, DEVICE))
    assert_close("loss", run(eager), run(model))
    with torch.no_grad():
        assert_close("logits", *(m(input_ids=IDS).logits for m in (eager, model)), units=64)
    assert calls == {"mix_rows_into": 6 if INTERPRETED else 3, "route_tokens": 3}


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_inference(name, folded, calls):
    eager, model = (each.eval() for each in pair(name))
    with torch.no_grad():
        if folded:
            retoken.fold(eager), retoken.fold(model)
        assert not model.retoken.ready(IDS, None).layers or name == "mort-delay"
        assert_close("logits", *(m(input_ids=IDS).logits for m in (eager, model)), units=128)
    wanted = expected_calls(name, training=False)
    if folded:
        to = {"gate_rows": "folded_gate_rows"} | (
            {"mix_rows_into": "folded_row_into"} if name == "mort-one" else {}
        )
        wanted = {to.get(kernel, kernel): count for kernel, count in wanted.items()}
    assert calls == wanted


@pytest.mark.parametrize("name", ["retoken", "mort-one"])
def test_a_gradient_goes_through_folded_rows_to_the_backbone(name, calls):
    eager, model = (retoken.fold(each.eval()) for each in pair(name))
    assert_close("loss", run(eager), run(model))
    assert_grads_close(eager, model, units=256)
    assert calls == ({} if name == "retoken" else {"folded_row_into": 3})


@pytest.mark.parametrize("name", ["retoken", "mort", "mort-one"])
@pytest.mark.parametrize("rows", [None, "int8"])
def test_placed_rows(name, rows, calls):
    """Records of a host tier, whose layers read them as the pass brings them."""
    eager, model = (each.eval() for each in pair(name))
    with torch.no_grad():
        for each in (eager, model):
            retoken.place(each, "host", rows=rows)
        # a CPU's rows are not staged: give the pass what a device would get
        source = model.retoken.source
        source.shelf = None
        assert_close("logits", *(m(input_ids=IDS).logits for m in (eager, model)), units=128)
    assert calls == expected_calls(name, training=False)


def test_generation(calls):
    eager, model = (each.eval() for each in pair("mort"))
    options = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    assert torch.equal(eager.generate(IDS, **options), model.generate(IDS, **options))
    assert calls["mix_rows_into"] == 15


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen2_moe"])
def test_other_families(family):
    eager, model = pair("mort", family=family)
    assert_close("loss", run(eager), run(model), units=64)


def test_a_compiled_model_calls_them_too(calls):
    eager, model = pair("mort")
    compiled = torch.compile(model, backend="aot_eager")
    loss = compiled(input_ids=IDS, labels=IDS, use_cache=False).loss + retoken.balance_loss(model)
    loss.backward()
    assert_close("loss", run(eager), loss.detach())
    assert_grads_close(eager, model, units=256)
    assert calls == {"mix_rows_into": 3}


def test_back_to_the_operators(calls):
    eager, model = pair("retoken")
    retoken.use_kernels(model, "eager")
    assert torch.equal(run(eager), run(model)) and not calls
    assert all(m.kernels is kinds.OPERATORS for m in retoken.modulators(model).values())


CASES = [
    ("retoken", "V", "early"),
    ("mort", "VxE", "early"),
    ("mort", "VxE", "routed"),
    ("mort", "V", "mixed"),
]


def sharded(rank, world_size):
    """[(loss, gradient norms by name) of the operators, the same of the kernels], for each of `CASES`."""
    from retoken.parallel import open_mesh, shard_tables

    mesh, found = open_mesh(DEVICE.type, world_size), []
    for name, layout, exchange in CASES:
        both = pair(name)
        for model in both:
            shard_tables(model.retoken, mesh, layout, exchange)
            loss = run(model, token_ids(2, 5, seed=rank).to(DEVICE))
            grads = [p.grad for p in model.retoken.parameters()]
            found.append([x.to_dense().cpu() if x.is_sparse else x.cpu() for x in (loss, *grads)])
    return found


def test_divided_tables():
    """Kernels gather rows that come early or routed; where owners mix, there are none to gather."""
    ranks, backend = (2, "gloo") if INTERPRETED else (1, "nccl")
    for found in run_distributed(sharded, ranks, backend=backend):
        for case, eager, model in zip(CASES, found[::2], found[1::2], strict=True):
            for number, (a, b) in enumerate(zip(eager, model, strict=True)):
                assert_close(f"{case}: {number}", a, b, units=256)
