"""Training on a GPU: the CPU's losses, tables in either memory to the bit, and runs that go on."""

import os

import pytest
import torch
from safetensors.torch import load_file

import retoken
from retoken.testing import run_distributed
from retoken.train import TrainConfig
from retoken.train.loop import train
from retoken.train.tables import TableOptions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
OPTIMIZERS = ("row_wise", "row_adamw", "adamw")


@pytest.fixture
def repeatable():
    """Sums in the same order each time."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def run(make, tmp_path):
    """Train; the held-out loss and the model's tensors."""

    def trained(name, variant="retoken", on_event=None, **options):
        values = {"device": "cuda", "variant": variant, "compile": "off"} | options
        result = train(make(out=tmp_path / name, **values), on_event=on_event)
        return result.val_loss, load_file(tmp_path / name / "model" / "model.safetensors")

    return trained


def equal(one, other):
    return one[0] == other[0] and all(torch.equal(one[1][name], other[1][name]) for name in one[1])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("variant", ["baseline", "retoken", "mort"])
def test_losses_are_the_cpu_s(run, variant, optimizer):
    if variant == "baseline" and optimizer != "adamw":
        pytest.skip("no tables")
    tables = {} if variant == "baseline" else {"tables": TableOptions(optimizer=optimizer)}
    gpu, cpu = run("gpu", variant, **tables), run("cpu", variant, device="cpu", **tables)
    assert gpu[0] == pytest.approx(cpu[0], rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 2}, {"table_weight_decay": 0.1}], ids=str)
@pytest.mark.parametrize("variant", ["retoken", "mort"])
def test_tables_in_host_memory_change_nothing(run, variant, options, repeatable):
    """The GPU moves resident rows by plain operators, the CPU those in its memory by compiled ones."""
    resident = run("resident", variant, **options)
    host = run("host", variant, tables=TableOptions(memory="host"), **options)
    assert resident[0] == pytest.approx(host[0], rel=1e-5)
    for name, tensor in resident[1].items():
        torch.testing.assert_close(tensor, host[1][name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("memory", ["device", "host"])
@pytest.mark.parametrize("variant", ["retoken", "mort"])
def test_a_run_repeats_and_goes_on_to_the_bit(run, variant, memory, repeatable):
    tables = TableOptions(memory=memory)
    once = run("once", variant, tables=tables)
    assert equal(once, run("twice", variant, tables=tables))

    def stop(event):
        if event["kind"] == "checkpoint":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("parts", variant, stop, tables=tables, checkpoint_every=5)
    assert equal(once, run("parts", variant, tables=tables, checkpoint_every=5))


@pytest.mark.parametrize(
    "options",
    [
        {"dtype": "bfloat16"},
        {"tables": TableOptions(dtype="bfloat16")},
        {"activation_checkpointing": True},
        {"compile": "on"},
        {"modulator": retoken.MoRTConfig(injection_delay=1)},
        {"modulator": retoken.MoRTConfig(router_input="block_input")},
    ],
    ids=str,
)
def test_options(run, options):
    gpu, cpu = (
        run("gpu", "mort", **options),
        run("cpu", "mort", **(options | {"device": "cpu", "compile": "off"})),
    )
    assert gpu[0] == pytest.approx(cpu[0], rel=2e-2 if "dtype" in str(options) else 1e-3)


def one_of_one(rank: int, world_size: int, values: dict) -> float:
    return train(TrainConfig.from_dict(values)).val_loss


@pytest.mark.parametrize("data_parallel", ["ddp", "fsdp"])
def test_a_process_group_of_nccl(make, run, tmp_path, data_parallel):
    config = make(
        out=tmp_path / "group", variant="mort", device="cuda", compile="off", data_parallel=data_parallel
    )
    found = run_distributed(one_of_one, 1, config.to_dict(), backend="nccl")
    assert found[0] == pytest.approx(run("alone", "mort")[0], rel=1e-4)
