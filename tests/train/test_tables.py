"""One seed, one loss curve: on 1, 2 and 4 processes, in every layout and exchange, with every optimizer."""

import pytest
import torch

import retoken
from retoken.errors import ConfigError
from retoken.optim import lr_factor, set_lr
from retoken.testing import run_distributed
from retoken.train import TrainConfig, setup
from retoken.train.furnish import Furnisher
from retoken.train.step import Stepper
from retoken.train.tables import TableOptions
from retoken.train.world import open_world

STEPS = 6
OPTIMIZERS = ("row_wise", "row_adamw", "adamw")
LAYOUTS = [
    ("retoken", "V", "early"),
    *(
        ("mort", layout, exchange)
        for layout in ("V", "E", "VxE")
        for exchange in ("early", "routed", "mixed")
    ),
]
# What the other process counts and layouts may differ by from one process: the order of float32 sums, which
# AdamW's division by sqrt(v) carries into rows whose gradients are nearly zero.
TOLERANCE = 2e-4


def curve(config: TrainConfig) -> list[float]:
    """Loss and gradient norm of every step, over all processes, without files."""
    with open_world(config.device, config.threads) as world:
        store = setup.open_store(config)
        furnisher = Furnisher(config, store, world)
        model = setup.build_model(config, store, furnisher.table_for)
        source = furnisher.furnish(model)
        model.train()
        if config.activation_checkpointing:
            setup.recompute_activations(model)
        forward = world.wrap(model, config.data_parallel == "fsdp")
        optimizer = setup.build_optimizer_for(model, config, source)
        stepper = Stepper(model, forward, optimizer, config, world, source)
        reader = setup.build_reader(config, store, world)
        found = []
        for step in range(STEPS):
            set_lr(optimizer, lr_factor(config.lr_schedule(), step))
            windows = reader.next_batch()
            upcoming = reader.upcoming() if stepper.looks_ahead else None
            loss, norm = stepper.step(windows, upcoming)
            found += [world.sum(loss.detach()).item() / world.size, norm.item()]
        return found


def curves(rank: int, world_size: int, configs: list[dict]) -> list[list[float]]:
    return [curve(TrainConfig.from_dict(values)) for values in configs]


@pytest.fixture
def job(make):
    def build(
        kind: str, layout: str = "auto", exchange: str = "auto", optimizer: str = "row_wise", **options
    ):
        tables = TableOptions(
            layout=layout, exchange=exchange, optimizer=optimizer, **options.pop("tables", {})
        )
        if kind == "mort" and "modulator" not in options:
            options["modulator"] = retoken.MoRTConfig(balance_coef=0.1)
        values = {"batch_size": 8, "steps": STEPS, "grad_clip": 0.5, "table_weight_decay": 0.1}
        return make(variant=kind, tables=tables, **(values | options))

    return build


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_layout_and_exchange(job, world_size, optimizer):
    cases = [case for case in LAYOUTS if case[1] != "VxE" or world_size > 2]
    jobs = [job(*case, optimizer) for case in cases]
    wanted = {kind: curve(job(kind, optimizer=optimizer)) for kind in ("retoken", "mort")}
    for found in run_distributed(curves, world_size, [config.to_dict() for config in jobs], timeout=500):
        for case, ours in zip(cases, found, strict=True):
            assert ours == pytest.approx(wanted[case[0]], rel=TOLERANCE), case


OPTIONS = {
    "accumulation": {"micro_batch_size": 1},
    "checkpointing": {"activation_checkpointing": True},
    "delay": {"modulator": retoken.MoRTConfig(balance_coef=0.1, injection_delay=1)},
    "block input": {"modulator": retoken.MoRTConfig(balance_coef=0.1, router_input="block_input")},
    "fsdp": {"data_parallel": "fsdp"},
    "copies of divided tables": {"tables": {"ranks": 2}},
    "bfloat16 rows": {"tables": {"dtype": "bfloat16"}},
}


def test_every_option_over_four_processes(job):
    cases = [
        (name, exchange, options)
        for name, options in OPTIONS.items()
        for exchange in (("early", "mixed") if name != "checkpointing" else ("early", "routed", "mixed"))
    ]
    jobs = [job("mort", "V", exchange, **options) for _, exchange, options in cases]
    alone = {}
    for name, options in OPTIONS.items():
        tables = {key: value for key, value in options.get("tables", {}).items() if key != "ranks"}
        alone[name] = curve(job("mort", **(options | {"tables": tables})))
    for found in run_distributed(curves, 4, [config.to_dict() for config in jobs], timeout=500):
        for (name, exchange, _), ours in zip(cases, found, strict=True):
            assert ours == pytest.approx(alone[name], rel=TOLERANCE), (name, exchange)


def test_layouts_sum_alike(job):
    """What differs is where in a request a row is, and with it the order of embedding_bag's sums of it."""
    jobs = [job("mort", layout, "early", grad_clip=0.0) for layout in ("V", "E", "VxE")]
    for found in run_distributed(curves, 4, [config.to_dict() for config in jobs]):
        first, *others = (each[::2] for each in found)
        for losses in others:
            assert losses == pytest.approx(first, rel=1e-5)


def test_rows_ahead_from_host_memory_change_nothing(job):
    both = ({}, {"micro_batch_size": 2}, {"table_weight_decay": 0.0})
    cases = [(kind, options) for kind in ("retoken", "mort") for options in both]
    cases.append(("mort", {"modulator": retoken.MoRTConfig.by_token_and_bigram(2)} | both[2]))
    for kind, options in cases:
        resident, host = (job(kind, **options), job(kind, tables={"memory": "host"}, **options))
        assert curve(resident) == curve(host)


def test_the_choice_is_the_one_of_fewest_bytes(job):
    said = run_distributed(what_was_decided, 2, job("mort").to_dict())
    assert said[0] == said[1]
    assert said[0].startswith("tables divided: layout ") and "; next layout" in said[0]


def what_was_decided(rank: int, world_size: int, values: dict) -> str:
    config = TrainConfig.from_dict(values)
    with open_world(config.device, config.threads) as world:
        store = setup.open_store(config)
        furnisher = Furnisher(config, store, world)
        furnisher.furnish(setup.build_model(config, store, furnisher.table_for))
        return furnisher.said


def refused(rank: int, world_size: int, values: dict) -> str:
    config = TrainConfig.from_dict(values)
    with open_world(config.device, config.threads) as world:
        try:
            store = setup.open_store(config)
            setup.build_model(config, store, Furnisher(config, store, world).table_for)
        except ConfigError as error:
            return str(error)
    return "accepted"


def test_refusals_over_processes(job):
    cases = {
        "accepted there: device": job("mort", tables={"memory": "host"}),
        "accepted there: auto, V, replicated": job("retoken", "E"),
        "accepted there: auto, early": job("retoken", "V", "mixed"),
        "tables.ranks is 3 with 2": job("mort", tables={"ranks": 3}),
    }
    for said, config in cases.items():
        assert all(said in answer for answer in run_distributed(refused, 2, config.to_dict())), said


@pytest.mark.parametrize("optimizer", ["row_wise", "adamw"])
def test_rows_by_bigrams_are_divided_too(job, optimizer):
    both = {"index": "token_bigram", "index_size": 1.5}
    cases = [
        ("retoken", "V", "early", retoken.ReTokenConfig(**both)),
        ("mort", "auto", "auto", retoken.MoRTConfig.by_token_and_bigram(2)),
        *(
            ("mort", layout, exchange, retoken.MoRTConfig(balance_coef=0.1, **both))
            for layout, exchange in (("V", "early"), ("E", "routed"), ("VxE", "mixed"))
        ),
    ]
    jobs = [job(*case[:3], optimizer, modulator=case[3]) for case in cases]
    wanted = {}
    for kind, *_, modulator in cases:
        if modulator not in wanted:
            wanted[modulator] = curve(job(kind, optimizer=optimizer, modulator=modulator))
    for found in run_distributed(curves, 4, [config.to_dict() for config in jobs], timeout=500):
        for case, ours in zip(cases, found, strict=True):
            assert ours == pytest.approx(wanted[case[3]], rel=TOLERANCE), case


def test_rows_of_rivals_are_not_divided(job):
    answers = run_distributed(refused, 2, job("bigram").to_dict())
    assert all("accepted: retoken or mort" in answer for answer in answers), answers


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": "sgd"}, "row_wise, row_adamw, adamw"),
        ({"ranks": -1}, "0 or more"),
        ({"optimizer": "adamw", "dtype": "bfloat16"}, "row_wise, row_adamw"),
        ({"layout": "replicated"}, "accepted there: adamw"),
    ],
)
def test_refused_options(options, said):
    with pytest.raises(ConfigError, match=said):
        TableOptions(**options)


def test_row_sparse_training_lowers_the_loss(job):
    losses = curve(job("mort", steps=STEPS))[::2]
    assert losses[-1] < losses[0] and torch.tensor(losses).isfinite().all()
