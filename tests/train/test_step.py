"""One step: a split batch gives the unsplit batch's gradients, the balance loss included (Eq. 21)."""

from pathlib import Path

import pytest
import torch

import retoken
from retoken.ops import naive
from retoken.testing import assert_close, randomize, tiny_model, token_ids
from retoken.train import TrainConfig
from retoken.train.setup import recompute_activations
from retoken.train.step import Stepper
from retoken.train.world import World

# transformers takes the loss in float32 whatever the model's type: some roundings of that, in float64's.
FLOAT32 = 64 * torch.finfo(torch.float32).eps / torch.finfo(torch.float64).eps
CONFIGS = {
    "baseline": None,
    "retoken": retoken.ReTokenConfig(),
    "mort": retoken.MoRTConfig(num_modulators=4, top_k=2, balance_coef=5.0),
    "mort delayed": retoken.MoRTConfig(num_modulators=4, top_k=2, balance_coef=5.0, injection_delay=1),
}


def attached(which: str, model_type: str = "llama", **options):
    """A tiny model in float64, so that only a wrong formula is off, with routers far from balance."""
    model = tiny_model(model_type, dtype=torch.float64, **options).train()
    if CONFIGS[which]:
        retoken.attach(model, CONFIGS[which])
        randomize(model.retoken)
    return model


def config_for(which: str, **options) -> TrainConfig:
    modulator = CONFIGS[which]
    values = {
        "out": Path("x"),
        "data": Path("x"),
        "preset": "cpu-xs",
        "steps": 1,
        "batch_size": 6,
        "grad_clip": 0,
    }
    variant = modulator.type if modulator else "baseline"
    return TrainConfig(**(values | options), variant=variant, modulator=modulator)


def gradients(model, config: TrainConfig, windows: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    """The logged loss, and the gradient each parameter had when the optimizer moved it."""
    found: dict[str, torch.Tensor] = {}

    class Spy(torch.optim.SGD):
        def step(self, closure=None):
            found.update({name: p.grad.clone() for name, p in model.named_parameters()})

    torch.manual_seed(5)
    loss, _ = Stepper(model, model, Spy(model.parameters(), lr=0.1), config, World()).step(windows)
    return loss.item(), found


@pytest.mark.parametrize("micro", [1, 2, 3])
@pytest.mark.parametrize("which", CONFIGS)
def test_a_split_batch_equals_the_whole(which, micro):
    windows = token_ids(6, 11)
    whole_loss, whole = gradients(attached(which), config_for(which), windows)
    loss, split = gradients(attached(which), config_for(which, micro_batch_size=micro), windows)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    for name, gradient in whole.items():
        assert_close(f"gradient of {name}", gradient, split[name], units=FLOAT32)


def test_the_step_s_gradient_is_that_of_the_paper_s_loss():
    """Next-token loss plus lambda times Eq. 21 over the whole batch, averaged over layers, all naive."""
    windows, which = token_ids(6, 11), "mort"
    model = attached(which)
    _, found = gradients(attached(which), config_for(which, micro_batch_size=2), windows)
    model.zero_grad()
    routings = []
    for module in retoken.modulators(model).values():
        module.router.register_forward_hook(lambda module, args, output: routings.append(output))
    logits = model(input_ids=windows[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    balance = [naive.balance_loss(r.logits_TE.flatten(0, -2), 2) for r in routings]
    (loss + 5.0 * torch.stack(balance).mean()).backward()
    for name, parameter in model.named_parameters():
        assert_close(f"gradient of {name}", parameter.grad, found[name], units=FLOAT32)


def test_a_balance_by_pass_is_the_mean_over_micro_batches():
    windows = token_ids(6, 11)
    options = {"micro_batch_size": 2, "balance_over": "pass"}
    _, found = gradients(attached("mort"), config_for("mort", **options), windows)
    parts = [
        gradients(attached("mort"), config_for("mort", batch_size=2), part)[1] for part in windows.split(2)
    ]
    for name, gradient in found.items():
        mean = sum(part[name] for part in parts) / 3
        assert_close(f"gradient of {name}", mean, gradient, units=FLOAT32)


def test_a_balance_by_pass_needs_no_pre_pass():
    model, calls = attached("mort"), []
    model.base_model.register_forward_hook(lambda *_: calls.append(1))
    gradients(model, config_for("mort", micro_batch_size=2, balance_over="pass"), token_ids(6, 11))
    assert len(calls) == 3


def test_without_the_whole_batch_s_counts_the_split_would_be_wrong(monkeypatch):
    """The pre-pass is what makes it exact: leaving it out shows at once in the routers' gradients."""
    from contextlib import nullcontext

    windows = token_ids(6, 11)
    _, whole = gradients(attached("mort"), config_for("mort"), windows)
    monkeypatch.setattr(Stepper, "_load_of", lambda self, parts: nullcontext())
    _, split = gradients(attached("mort"), config_for("mort", micro_batch_size=2), windows)
    name = "retoken.layers.0.router.weight"
    assert (whole[name] - split[name]).abs().max() > 1e-3 * whole[name].abs().max()


@pytest.mark.parametrize(
    "which, micro, passes", [("mort", 6, 1), ("mort", 2, 6), ("retoken", 2, 3), ("baseline", 2, 3)]
)
def test_the_pre_pass_runs_only_where_it_is_needed(which, micro, passes):
    model = attached(which)
    calls = []
    model.base_model.register_forward_hook(lambda *_: calls.append(1))
    gradients(model, config_for(which, micro_batch_size=micro), token_ids(6, 11))
    assert len(calls) == passes


def test_the_pre_pass_drops_out_what_the_real_pass_drops_out():
    """Counts taken with other dropout masks than the gradient's would be of another routing."""
    model = attached("mort", "gpt2", embd_pdrop=0.5, resid_pdrop=0.5)
    seen = []
    model.base_model.register_forward_hook(lambda *_: seen.append(retoken.router_loads(model)))
    gradients(model, config_for("mort", micro_batch_size=2), token_ids(6, 11))
    counted, trained = seen[:3], seen[3:]
    for before, after in zip(counted, trained, strict=True):
        assert all(torch.equal(before[i].count_E, after[i].count_E) for i in before)
    model(input_ids=token_ids(6, 11)[:2, :-1])
    assert not torch.equal(retoken.router_loads(model)[1].count_E, counted[0][1].count_E), "it does drop out"


def test_the_logged_loss_is_the_next_token_loss_alone():
    windows = token_ids(6, 11)
    model = attached("mort")
    logits = model(input_ids=windows[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
    for micro in (2, 6):
        loss, _ = gradients(attached("mort"), config_for("mort", micro_batch_size=micro), windows)
        assert loss == pytest.approx(expected, rel=1e-6)


def test_a_mixture_s_own_router_loss_trains_but_is_not_logged():
    windows = token_ids(6, 11)
    options = {"output_router_logits": True, "router_aux_loss_coef": 3.0}
    model = attached("baseline", "qwen3_moe", **options)
    logits = model(input_ids=windows[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
    loss, with_aux = gradients(model, config_for("baseline"), windows)
    _, without = gradients(attached("baseline", "qwen3_moe"), config_for("baseline"), windows)
    assert loss == pytest.approx(expected, rel=1e-6)
    gate = next(name for name in without if name.endswith("gate.weight"))
    assert not torch.allclose(with_aux[gate], without[gate])


def test_clipping_limits_the_norm_that_is_reported_unclipped():
    windows, model = token_ids(6, 11), attached("retoken")
    config = config_for("retoken", grad_clip=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    kept = {}
    optimizer.register_step_pre_hook(
        lambda *_: kept.update({n: p.grad.clone() for n, p in model.named_parameters()})
    )
    _, norm = Stepper(model, model, optimizer, config, World()).step(windows)
    clipped = torch.stack([g.norm() for g in kept.values()]).norm()
    assert norm > 0.1
    assert clipped.item() == pytest.approx(0.01, rel=1e-3)
    assert all(p.grad is None for p in model.parameters())


def test_activation_checkpointing_changes_nothing():
    windows = token_ids(6, 11)
    loss, plain = gradients(attached("mort"), config_for("mort", micro_batch_size=3), windows)
    model = attached("mort")
    recompute_activations(model)
    again, recomputed = gradients(model, config_for("mort", micro_batch_size=3), windows)
    assert again == pytest.approx(loss, rel=1e-6)
    for name, gradient in plain.items():
        assert_close(f"gradient of {name}", gradient, recomputed[name], units=FLOAT32)


def test_bfloat16_is_autocast_over_float32_parameters():
    windows = token_ids(6, 11)
    model = tiny_model("llama").train()
    retoken.attach(model, retoken.MoRTConfig())
    seen = []
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    loss, found = gradients(model, config_for("mort", dtype="bfloat16", micro_batch_size=3), windows)
    assert set(seen) == {torch.bfloat16}
    assert {g.dtype for g in found.values()} == {torch.float32}
    plain, _ = gradients(model, config_for("mort"), windows)
    assert loss == pytest.approx(plain, rel=0.02) and loss != plain
