"""The loop end to end: what a run leaves, and that an interrupted one ends as if it had not been."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import retoken
from retoken.checkpoint import read
from retoken.errors import TrainingError
from retoken.train import TrainResult
from retoken.train.loop import train

VARIANTS = ("baseline", "retoken", "mort")


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def timeless(out: Path) -> list[dict]:
    """Metrics without what a clock decides."""
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in lines(out)
    ]


def cut_off(config, step: int = 10, **options) -> None:
    """Train until the power fails behind that step."""

    def crash(event):
        if event["kind"] == "train" and event["step"] == step:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(config, on_event=crash, **options)


def assert_same_run(one: Path, other: Path) -> None:
    """Bit-equal weights, optimizer state and random state at the end; equal metrics, line for line."""
    a, b = (read(out / "checkpoints" / "step-000012").tensors().read_all() for out in (one, other))
    assert a.keys() == b.keys() and any(key.startswith("optimizer.") for key in a) and "rng.0.cpu" in a
    for key in a:
        assert torch.equal(a[key], b[key]), f"{key} differs"
    assert timeless(one) == timeless(other)
    a, b = (load_file(out / "token_loss.safetensors") for out in (one, other))
    assert torch.equal(a["nll"], b["nll"]) and torch.equal(a["count"], b["count"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_leaves_what_others_read(make, store, variant):
    config = make(variant=variant, eval_every=6, checkpoint_every=4)
    events = []
    result = train(config, on_event=events.append)
    out = config.out
    assert result == TrainResult.read(out / "result.json")
    kinds = [(line["kind"], line["step"]) for line in lines(out)]
    assert kinds == [
        *[("modulators", 0), ("train", 5), ("eval", 6), ("modulators", 6), ("train", 10), ("train", 12)],
        *[("eval", 12), ("modulators", 12)],
    ]
    assert [e["step"] for e in events if e["kind"] == "checkpoint"] == [4, 8, 12]
    assert [e for e in events if e["kind"] in ("train", "eval", "modulators")] == lines(out)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == [
        "step-000004",
        "step-000008",
        "step-000012",
    ]
    assert any((out / "tensorboard").iterdir())
    last = lines(out)[-1]
    assert set(last["hidden_std"]) == {"0", "1", "2", "3"}
    assert set(last["scale_mean"]) == (set() if variant == "baseline" else {"0", "1", "2"})
    assert all(sum(load) == pytest.approx(1) for load in last["load"].values())
    assert bool(last["load"]) == (variant == "mort")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_result_counts_what_was_trained(make, variant):
    config = make(variant=variant)
    result = train(config)
    model = AutoModelForCausalLM.from_pretrained(config.out / "model")
    assert result.stored_params == sum(p.numel() for p in model.parameters())
    tables = (
        0
        if variant == "baseline"
        else sum(m.table.weight.numel() for m in retoken.modulators(model).values())
    )
    assert result.table_params == tables
    assert result.tokens == 12 * 4 * 16 and result.steps == 12
    assert result.val_tokens == 400 // 17 * 16
    assert result.tokens_per_second == pytest.approx(result.tokens / result.train_seconds)
    assert result.flops_per_token > 6 * 3 * 64 * 64
    assert result.peak_memory_bytes >= result.start_memory_bytes > 10**7
    AutoTokenizer.from_pretrained(config.out / "model")


def test_the_held_out_loss_is_the_saved_model_s_without_auxiliary_losses(make, store):
    config = make(variant="mort", modulator=retoken.MoRTConfig(balance_coef=10.0))
    result = train(config)
    model = AutoModelForCausalLM.from_pretrained(config.out / "model")
    from retoken.data.tokens import TokenStore, bytes_of, eval_windows

    opened = TokenStore.open(store)
    windows = torch.cat(list(eval_windows(opened.split("val"), 17, 400)))
    with torch.no_grad():
        logits = model(input_ids=windows[:, :-1]).logits
    nll = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    assert result.val_loss == pytest.approx(nll.item(), rel=1e-5)
    bits = nll.item() * windows[:, 1:].numel() / torch.log(torch.tensor(2.0)).item()
    assert result.val_bits_per_byte == pytest.approx(bits / bytes_of(windows, opened.token_bytes()), rel=1e-5)
    by_token = load_file(config.out / "token_loss.safetensors")
    assert by_token["nll"].sum().item() / by_token["count"].sum().item() == pytest.approx(result.val_loss)
    train_losses = [line["loss"] for line in lines(config.out) if line["kind"] == "train"]
    assert max(train_losses) < 7, "the logged loss must not hold the balance loss, which is about 10 here"


def test_it_learns(make):
    first, *_, last = train_lines(make(steps=60, variant="retoken", lr=1e-2))
    assert last["loss"] < first["loss"] - 2
    assert last["lr"] == pytest.approx(1e-3)


def train_lines(config) -> list[dict]:
    train(config)
    return [line for line in lines(config.out) if line["kind"] == "train"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_crash_resumes_bit_equal(make, tmp_path, variant):
    """The crash comes two steps behind a checkpoint: lines written in between must not stay twice."""
    options = {"variant": variant, "eval_every": 3, "checkpoint_every": 4, "micro_batch_size": 2}
    whole = make(out=tmp_path / "whole", **options)
    broken = make(out=tmp_path / "broken", **options)
    train(whole)

    cut_off(broken)
    assert lines(broken.out)[-1]["step"] == 10
    train(broken)
    assert_same_run(whole.out, broken.out)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_bit_equal(make, tmp_path, number):
    whole, stopped = (
        make(out=tmp_path / name, log_every=1, variant="retoken") for name in ("whole", "stopped")
    )
    train(whole)

    def stop(event):
        if event["kind"] == "train" and event["step"] == 7:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="stopped behind step 8 of 12"):
        train(stopped, on_event=stop)
    assert signal.getsignal(number) is before
    assert [p.name for p in (stopped.out / "checkpoints").iterdir()] == ["step-000008"]
    train(stopped)
    assert_same_run(whole.out, stopped.out)


def test_dropout_resumes_bit_equal_too(make, tmp_path, gpt2_with_dropout):
    options = {
        "model": str(gpt2_with_dropout),
        "variant": "mort",
        "checkpoint_every": 4,
        "micro_batch_size": 2,
    }
    whole, stopped = (make(out=tmp_path / name, log_every=1, **options) for name in ("whole", "stopped"))
    train(whole)

    cut_off(stopped, 6)
    train(stopped)
    assert_same_run(whole.out, stopped.out)


def test_one_seed_gives_the_variants_one_backbone_and_one_data_order(make, tmp_path, store):
    from retoken.data.tokens import TokenStore
    from retoken.train import setup

    opened = TokenStore.open(store)
    models = [setup.build_model(make(variant=variant, seed=3), opened) for variant in VARIANTS]
    plain = models[0].state_dict()
    for model in models[1:]:
        state = model.state_dict()
        assert all(torch.equal(state[key], plain[key]) for key in plain)
    other = setup.build_model(make(seed=4), opened).state_dict()
    assert not torch.equal(other["model.embed_tokens.weight"], plain["model.embed_tokens.weight"])


def test_a_finished_run_is_not_run_again(make):
    config = make()
    first = train(config)
    events = []
    assert train(config, on_event=events.append) == first
    assert events == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_of_before_some_options_goes_on(make, variant):
    config = make(variant=variant, checkpoint_every=4)
    cut_off(config)
    said = json.loads((config.out / "config.json").read_text())
    for name in ("balance_over", "trains"):
        del said["train"][name]
    (config.out / "config.json").write_text(json.dumps(said))
    assert train(config).steps == 12


def test_a_crash_behind_the_last_checkpoint_only_evaluates_again(make, tmp_path):
    whole, broken = (make(out=tmp_path / name, variant="retoken") for name in ("whole", "broken"))
    train(whole)

    def crash(event):
        if event["kind"] == "eval":
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        train(broken, on_event=crash)
    assert not (broken.out / "result.json").exists()
    train(broken)
    assert_same_run(whole.out, broken.out)


def test_a_loss_that_is_not_finite_stops_with_step_batch_and_checkpoint(make, monkeypatch):
    config = make(checkpoint_every=4, log_every=100)
    from retoken.train.step import Stepper

    real, done = Stepper.step, []

    def poisoned(self, windows, upcoming=None):
        loss, norm = real(self, windows, upcoming)
        done.append(1)
        return (loss * float("nan") if len(done) == 7 else loss), norm

    monkeypatch.setattr(Stepper, "step", poisoned)
    with pytest.raises(TrainingError) as caught:
        train(config)
    message = str(caught.value)
    assert message.startswith('loss is nan at step 7, batch {"position": 24')
    assert message.endswith("last good checkpoint: " + str(config.out / "checkpoints" / "step-000004"))
    assert "\n" not in message


def test_a_rate_that_explodes_is_caught_for_real(make):
    with pytest.raises(TrainingError, match=r"(loss|gradient norm) is (nan|inf) .*at step \d+, batch"):
        train(make(lr=1e30, grad_clip=0, warmup_ratio=0, steps=30))


def test_the_clock_stands_still_in_evaluations_and_checkpoints(make, monkeypatch):
    import time

    from retoken.train import loop

    real = loop.evaluate

    def slow(*args):
        time.sleep(0.5)
        return real(*args)

    monkeypatch.setattr(loop, "evaluate", slow)
    config = make(eval_every=1, steps=4)
    started = time.perf_counter()
    result = train(config)
    assert time.perf_counter() - started > 2.0
    assert result.train_seconds < 1.0
    seconds = [line["seconds"] for line in lines(config.out)]
    assert seconds == sorted(seconds) and 0 < seconds[1] < seconds[-1] <= result.train_seconds


@pytest.mark.parametrize("variant", ["retoken", "mort", "engram"])
def test_what_is_attached_trains_alone_and_resumes_bit_equal(make, tmp_path, variant):
    """A retrofit: a pretrained backbone, neutral at the start, its own weights to the bit at the end."""
    train(make(out=tmp_path / "base"))
    backbone = {"model": str(tmp_path / "base" / "model"), "variant": variant, "trains": "attached"}
    options = {**backbone, "checkpoint_every": 4, "eval_every": 6}
    whole, broken = make(out=tmp_path / "whole", **options), make(out=tmp_path / "broken", **options)
    train(whole)

    cut_off(broken)
    train(broken)
    assert_same_run(whole.out, broken.out)
    before, after = (
        AutoModelForCausalLM.from_pretrained(tmp_path / run / "model").state_dict()
        for run in ("base", "whole")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    start, end = (
        read(whole.out / "checkpoints" / f"step-{step:06d}").tensors().read_all() for step in (4, 12)
    )
    assert all(not torch.equal(start[name], end[name]) for name in start if name.endswith(".table"))


def test_a_retrofit_starts_neutral(make, tmp_path):
    """With a scale of 0 the first evaluation is the backbone's own loss."""
    base = train(make(out=tmp_path / "base"))
    config = retoken.ReTokenConfig(init_scale=0.0)
    options = {"model": str(tmp_path / "base" / "model"), "variant": "retoken", "modulator": config}
    result = train(make(out=tmp_path / "fitted", trains="attached", lr=1e-12, **options))
    assert abs(result.val_loss - base.val_loss) < 1e-6


def test_a_model_can_be_adapted_and_resumes_bit_equal(make, tmp_path):
    """LoRA by the PEFT library: only what it adds trains, and a run that was cut off goes on with it."""
    peft = pytest.importorskip("peft")

    def lora(model):
        torch.manual_seed(0)
        return peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules="all-linear"), model)

    whole, broken = (make(out=tmp_path / name, checkpoint_every=4) for name in ("whole", "broken"))
    train(whole, adapt=lora)
    cut_off(broken, adapt=lora)
    train(broken, adapt=lora)
    assert_same_run(whole.out, broken.out)
    start, end = (read(whole.out / "checkpoints" / f"step-{n:06d}").tensors().read_all() for n in (4, 12))
    moved = {
        name
        for name in start
        if not name.startswith(("optimizer.", "rng.")) and not torch.equal(start[name], end[name])
    }
    assert moved and all(".lora_" in name for name in moved)
