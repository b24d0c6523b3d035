"""What is picked, and why."""

import pytest

from retoken.config import MoRTConfig, ReTokenConfig
from retoken.errors import ConfigError
from retoken.plan import Batch, Frequencies, Job, Machine, Tables, choose, plan, traffic, work_of
from retoken.presets import Backbone, get

ZIPF = Frequencies.zipf(8192, 1.0)
MORT = Tables(vocab_size=8192, width=128, layers=4, modulators=5, top_k=3, mixes=True)
PLAIN = Tables(vocab_size=8192, width=128, layers=4)
MACHINE = Machine(
    flops=5e10, memory_bandwidth=1e10, link_bandwidth=1e9, latency=1e-5, host_bandwidth=1e10, overlap=0.5
)


def test_every_layout_and_option_is_a_candidate_and_the_fewest_bytes_come_first() -> None:
    choice = choose(MORT, Batch(sequences=64, context_length=128, ranks=4), ZIPF)
    found = {(each.grid.layout, each.option) for each in choice.candidates}
    assert found == {(grid, option) for grid in ("V", "E", "VxE") for option in traffic.OPTIONS}
    sizes = [each.bytes for each in choice.candidates]
    assert sizes == sorted(sizes)
    for each in choice.candidates:
        once = traffic.expected(ZIPF, 16 * 128, MORT, each.grid, each.option, ranks=4)
        assert each.bytes == pytest.approx(once.flow().busiest)
    assert str(choice).startswith(f"layout {choice.grid}, option {choice.option}: ")


def test_few_repeats_favour_mixing_and_many_favour_rows() -> None:
    # A mixture costs D float32 a token each way; rows cost D a distinct pair, or E D a distinct id.
    found = [
        choose(MORT, Batch(sequences=4, context_length=length, ranks=4), ZIPF).option
        for length in (64, 16384, 10**6)
    ]
    assert found == ["mixed", "routed", "early"]


def test_micro_batches_ask_anew() -> None:
    whole = choose(MORT, Batch(sequences=64, context_length=128, ranks=4), ZIPF, layout="V", option="early")
    parts = Batch(sequences=64, context_length=128, ranks=4, micro_sequences=2)
    split = choose(MORT, parts, ZIPF, layout="V", option="early")
    assert split.best.messages == 8 * whole.best.messages
    asked = [ZIPF.unique(tokens).sum() for tokens in (256, 2048)]
    moved = [each.best.traffic.flow("rows").received.sum() for each in (split, whole)]
    assert moved[0] / moved[1] == pytest.approx(8 * asked[0] / asked[1])
    assert moved[0] > 1.4 * moved[1]
    twice = choose(MORT, parts, ZIPF, layout="V", option="early", forwards=2)
    for phase, times in (("ids", 2), ("rows", 2), ("gradients", 1)):
        once, again = (each.best.traffic.flow(phase).sent for each in (split, twice))
        assert again == pytest.approx(times * once)


def test_retoken_has_one_option_and_one_layout() -> None:
    choice = choose(PLAIN, Batch(sequences=64, context_length=128, ranks=4), ZIPF)
    assert [(each.grid.layout, each.option) for each in choice.candidates] == [("V", "early")]
    with pytest.raises(ConfigError, match="exchange is 'mixed'; accepted: auto, early"):
        choose(PLAIN, Batch(sequences=64, context_length=128, ranks=4), ZIPF, option="mixed")


def test_one_rank_moves_nothing() -> None:
    choice = choose(MORT, Batch(sequences=4, context_length=64), ZIPF)
    assert choice.best.bytes == 0 and choice.best.messages == 0


def test_replicas_exchange_gradients_too() -> None:
    batch = Batch(sequences=8, context_length=64, ranks=8)
    together = choose(MORT, batch, ZIPF, option="early", layout="V")
    apart = choose(MORT, batch, ZIPF, option="early", layout="V", emp=2)
    assert apart.grid.size == 2 and "replica gradients" in apart.best.traffic.lanes
    assert "replica gradients" not in together.best.traffic.lanes
    for emp in (3, -1, 16):
        with pytest.raises(
            ConfigError, match=f"tables.ranks is {emp} with 8 ranks; accepted: a divisor of 8"
        ):
            choose(MORT, batch, ZIPF, emp=emp)


def _job(**values) -> Job:
    backbone = Backbone.of(get("cpu-s"))
    return Job(
        **{
            "backbone": backbone,
            "modulator": MoRTConfig(),
            "batch": Batch(sequences=16, context_length=128, ranks=4),
            "machine": MACHINE,
            "frequencies": ZIPF,
        }
        | values
    )


def test_a_plan_by_hand() -> None:
    found = plan(_job(memory=1e9))
    counts = _job().backbone.count(MoRTConfig())
    assert found.parameters["table_params"] == counts.table_params == 5 * 4 * 8192 * 128
    assert found.parameters["eta"] == counts.eta and found.parameters["rho"] == 0.6
    assert found.unique["micro_batch"] == pytest.approx(ZIPF.unique(512).sum())
    assert found.unique["step"] == pytest.approx(ZIPF.unique(2048).sum())
    # A ring of 4 takes 1.5 times the gradients through each link, half of the backward pass beside it.
    seconds = counts.backbone_flops_per_token * 512 / 5e10
    reduce = 1.5 * 4 * counts.backbone_params / 1e9 + 6e-5
    exposed = max(0.0, reduce - 0.5 * seconds * 2 / 3)
    assert found.base_time.total == pytest.approx(seconds + exposed)
    naive, sharded = found.ladder
    assert naive.sent == 1.5 * 4 * counts.table_params
    assert naive.memory.device["table optimizer"] == 8 * counts.table_params
    assert sharded.name == "sharded" and sharded.grid.layout == "V"
    best = found.fewest_bytes
    assert best.sent <= sharded.sent <= naive.sent
    assert naive.overhead > sharded.overhead > best.overhead > 0
    assert found.fastest.overhead == min(each.overhead for each in found.outlooks)
    assert best.fits is True and best.memory.left(1e9) > 0


def test_what_does_not_fit_is_not_the_fastest() -> None:
    roomy = plan(_job(memory=1e12))
    sizes = sorted({each.memory.device_total for each in roomy.outlooks})
    tight = plan(_job(memory=float(sizes[0])))
    assert tight.fastest.memory.device_total == sizes[0]
    assert any(each.fits is False for each in tight.outlooks)
    assert plan(_job()).fewest_bytes.fits is None


def test_the_work_of_a_configuration_is_the_plans() -> None:
    job = _job(option="routed", layout="V")
    (only,) = plan(job).outlooks
    work = work_of(job, only.grid, only.name)
    assert work.waited_bytes + work.backward_bytes > 0 and work.forward_bytes == 0
    moved = only.bytes
    assert work.backward_bytes > moved["gradients"]["sent"] > 0
    early = work_of(_job(), only.grid, "early")
    assert early.forward_bytes > 0 and early.forward_window == 0.75


def test_a_counting_pass_costs_a_third_of_the_compute_and_another_exchange() -> None:
    once, twice = (plan(_job(counting_pass=flag, layout="V", option="early")) for flag in (False, True))
    (a,), (b,) = once.outlooks, twice.outlooks
    assert b.time.compute == pytest.approx(a.time.compute * 4 / 3)
    assert b.bytes["rows"]["sent"] == 2 * a.bytes["rows"]["sent"]
    assert b.bytes["gradients"] == a.bytes["gradients"]
    assert twice.base_time == once.base_time
    plain = plan(_job(counting_pass=True, modulator=ReTokenConfig()))
    assert plain.fastest.time.compute == pytest.approx(once.base_time.compute)


def test_dense_adamw_is_replicated_unless_a_layout_is_asked_for() -> None:
    whole, divided = (plan(_job(optimizer="adamw", layout=layout)) for layout in ("auto", "V"))
    assert [each.name for each in whole.outlooks] == ["naive"] and whole.ladder == ()
    assert plan(_job(optimizer="adamw", layout="replicated")).outlooks == whole.outlooks
    everything = 12 * whole.parameters["table_params"]
    kinds = ("table rows", "table optimizer")
    assert sum(whole.fastest.memory.device[kind] for kind in kinds) == everything
    assert sum(divided.fastest.memory.device[kind] for kind in kinds) == everything / 4
    assert {"table gradients", "fetched rows"} < set(divided.fastest.memory.device)
    with pytest.raises(ConfigError, match=r"'replicated' with tables.optimizer 'row_wise'"):
        _job(layout="replicated")
    one = plan(_job(optimizer="adamw", batch=Batch(sequences=16, context_length=128)))
    assert one.fastest.memory.device["table gradients"] == 4 * one.parameters["table_params"]
    assert one.ladder == ()


def test_nothing_attached() -> None:
    found = plan(_job(modulator=None))
    assert found.outlooks == () and found.parameters["table_params"] == 0
    assert set(found.base_memory.device) == {"backbone weights", "backbone gradients", "backbone optimizer"}
