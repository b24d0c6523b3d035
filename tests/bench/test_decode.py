"""The decode bench on tiny models: what it runs, that it compares outputs, and what it refuses."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import retoken
from retoken.bench.decode import cases, prompts, records, turns
from retoken.bench.decode.bound import serve_within
from retoken.bench.decode.cap import ROOT
from retoken.bench.decode.passes import EagerPasses, repeatable
from retoken.cli.main import main
from retoken.errors import ConfigError, TrainingError
from retoken.eval import open_checkpoint
from retoken.serving.packed import PackedFile

COLD = ("disk-cold", "chosen-cold", "none-cold", "sync-cold")
PLACEMENTS = ("device", "host", "disk-warm", "sync-host", *COLD)


@pytest.fixture
def some(tiny_store):
    return prompts.cut(tiny_store, count=3, batch=2, length=5, following=3, seed=0)


@pytest.fixture
def backbone():
    return cases.random_backbone("demo", torch.float32)


def _make(backbone, some, folder, placements=PLACEMENTS, rows="float32", variants=("retoken", "mort-3of5")):
    options = {"rows": rows, "tokens": prompts.tokens_of(some), "folder": folder}
    return cases.preset_cases(backbone, variants, placements, **options)


@pytest.mark.parametrize("rows", ["float32", "int8"])
def test_every_placement_takes_turns_and_agrees(backbone, some, tmp_path, rows):
    made = _make(backbone, some, tmp_path, rows=rows)
    found = turns.take(made, some, lambda: None)
    assert len(made) == 1 + 2 * len(PLACEMENTS) and len(found) == 2 * len(made)
    assert all(reading.tpot > 0 and reading.ttft > 0 for reading in found)
    summary = turns.summarize(found)
    assert [s.tpot.median for s in summary if s.variant == cases.BASELINE] == [1.0]


@pytest.mark.parametrize("variant", ["mort-2of4-early", "mort-2of4-delayed"])
def test_rows_of_an_early_choice_agree_however_they_are_asked_for(backbone, some, tmp_path, variant):
    made = _make(
        backbone, some, tmp_path, ("device", "disk-cold", "chosen-cold", "none-cold"), variants=[variant]
    )
    assert len(turns.take(made, some, lambda: None)) == 2 * len(made)


def test_passes_take_turns_unless_something_is_done_between_them(backbone, some, tmp_path):
    order = []

    class Noted(EagerPasses):
        def further(self, ids):
            order.append((self.model, ids.shape[1]))
            return super().further(ids)

    for placements, abreast in ((("device", "host"), True), (("host", "disk-cold"), False)):
        order.clear()
        made = [
            replace(c, passes=Noted)
            for c in _make(backbone, some, tmp_path, placements, variants=["retoken"])
        ]
        turns.take(made, some[:1], lambda: None)
        models = [model for model, _ in order]
        assert len(order) == len(made) * (1 + some[0].following.shape[1])
        assert (len(set(models[: len(made)])) == len(made)) is abreast
        assert (len(set(models[:4])) == 1) is not abreast
        counts = {id(model): sum(width for other, width in order if other is model) for model in models}
        assert set(counts.values()) == {5 + 3}


@pytest.mark.parametrize(("variant", "rows"), [("retoken", "float32"), ("mort-3of5", "int8")])
def test_compiled_passes_read_rows_in_memory_in_one_graph(backbone, some, tmp_path, variant, rows):
    called = _make(backbone, some, tmp_path, ("host",), rows=rows, variants=(variant,))[1]
    _, _, wanted = turns.run(called, called.passes_over(some[1]), some[1])
    compiled = cases.compiled(called)
    assert {module.kernels.name for module in retoken.modulators(compiled.model).values()} == {"traced"}
    torch._dynamo.utils.counters.clear()
    _, _, found = turns.run(compiled, compiled.passes_over(some[1]), some[1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "one for prompts, one for tokens"
    assert torch.allclose(found, wanted, atol=1e-4)


def test_rows_in_memory_take_what_is_written_and_no_more(backbone, monkeypatch):
    layout = cases.layout_for(backbone, cases.VARIANTS["mort-3of5"], "float32")
    huge = replace(layout, vocab_size=1 << 24)
    monkeypatch.setattr(records, "available_bytes", lambda: 2 * layout.record_bytes)
    assert records.memory(huge, 2, "host").shape == (1 << 24, layout.record_bytes)
    with pytest.raises(ConfigError, match=r"device tier needs .* bytes for 3 records; available"):
        records.memory(huge, 3, "device")


def test_whole_tables_and_their_placements_agree(backbone, some, tmp_path):
    options = {"kernels": "eager", "folder": tmp_path}
    made = cases.resident_cases(backbone, ("retoken", "mort-2of4"), ("host", "disk-warm"), **options)
    assert [case.placement for case in made] == ["", *["resident", "host", "disk-warm"] * 2]
    assert len(turns.take(made, some, lambda: None)) == 2 * len(made)
    with pytest.raises(ConfigError, match="no GPU may read host memory; accepted: host"):
        cases.resident_cases(backbone, ("retoken",), ("host-direct",), **options)


@pytest.mark.parametrize("variant", ["retoken", "mort-3of5"])
def test_the_papers_protocol_computes_the_same_up_to_rounding(backbone, some, tmp_path, variant):
    made = _make(backbone, some, tmp_path, ("device", "sync-host", "sync-cold"), variants=(variant,))
    _, device, host, cold = (turns.run(case, case.passes_over(some[0]), some[0])[2] for case in made)
    assert torch.allclose(device, host, atol=1e-4) and torch.equal(host, cold)


def test_outputs_that_differ_are_no_result(backbone, some, tmp_path):
    made = _make(backbone, some, tmp_path, ("device", "host"), variants=("retoken",))
    retoken.modulators(made[2].model)[0].scale.data.mul_(2)
    with pytest.raises(TrainingError, match="give different logits"):
        turns.take(made, some, lambda: None)


def test_a_backbone_that_differs_from_itself_is_found_out(backbone, some):
    plain = cases.Case(variant=cases.BASELINE, placement="", model=backbone)
    assert turns.repeats(plain, some[0])

    class Drifting(EagerPasses):
        calls = 0

        def further(self, ids):
            self.calls += 1
            return super().further(ids) + (self.calls > 8)

    assert not turns.repeats(replace(plain, passes=Drifting), some[0])


def test_other_attention_is_left_out_inside_alone():
    with repeatable():
        assert not torch.backends.cuda.cudnn_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_the_twin_shares_every_weight(backbone):
    other = cases.twin(backbone)
    ours, theirs = backbone.state_dict(), other.state_dict()
    assert all(ours[name].data_ptr() == theirs[name].data_ptr() for name in ours)
    assert other is not backbone


def test_the_file_has_its_full_size_and_rows_of_the_tokens_only(tmp_path, backbone):
    layout = cases.layout_for(backbone, cases.VARIANTS["retoken"], "bfloat16")
    tokens = torch.tensor([3, 700, 1999])
    records.write(tmp_path / "f", layout, tokens)
    packed = PackedFile(tmp_path / "f")
    assert torch.equal(packed.gather(tokens), records.random_records(layout, tokens))
    assert not packed.records()[4].any()
    assert os.stat(tmp_path / "f").st_blocks * 512 < layout.bytes


def test_the_ratio_is_a_median_with_an_interval_of_order_statistics():
    ratio = turns.Ratio.of([float(i) for i in range(1, 31)], [1.0] * 30)
    assert (ratio.median, ratio.low, ratio.high, ratio.count) == (15.5, 10.0, 21.0, 30)
    few = turns.Ratio.of([2.0, 4.0], [1.0, 1.0])
    assert (few.low, few.high) == (2.0, 4.0)


def test_a_trained_run_is_placed_too(tiny_run, tiny_store, tmp_path, capsys):
    words = ["bench", "decode", str(tiny_run("mort")), "--data", str(tiny_store), "--repeats", "2"]
    capsys.readouterr()
    more = ["--tokens", "2", "--prompt-lengths", "4", "--placements", "host", "disk-warm"]
    assert main([*words, *more, "--csv", str(tmp_path / "t.csv"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["variant"], row["placement"]) for row in found["decode"]] == [
        ("baseline", ""),
        ("trained", "resident"),
        ("trained", "host"),
        ("trained", "disk-warm"),
    ]
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 1 + 2 * 4


def _is_cached(packed, token):
    """Whether reading a token's record would not wait for a disk."""
    with packed.path.open("rb") as file:
        where = packed._start + token * packed.layout.record_bytes
        try:
            os.preadv(file.fileno(), [bytearray(1)], where, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            pytest.skip(f"this file system does not tell ({error})")
    return True


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux tells")
@pytest.mark.parametrize("whole", [False, True])
def test_a_cold_file_is_not_cached_whoever_has_it_mapped(backbone, some, tmp_path, whole):
    if whole:
        options = {"kernels": "eager", "folder": tmp_path}
        made = cases.resident_cases(backbone, ["retoken"], ("disk-warm", "disk-cold"), **options)
    else:
        made = _make(backbone, some, tmp_path, ("disk-warm", "disk-cold"), variants=["retoken"])
    warm, cold = made[-2:]
    tokens = prompts.tokens_of(some)
    for case in (warm, cold):
        case.packed.gather(tokens)  # mapped by both
    assert warm.packed.path == cold.packed.path and _is_cached(cold.packed, int(tokens[1]))
    cold.between()
    assert not _is_cached(cold.packed, int(tokens[1]))
    warm.prepare(tokens)
    assert _is_cached(cold.packed, int(tokens[1]))


def test_a_warm_file_has_been_read_by_others_only(backbone, some, tmp_path):
    *_, warm = _make(backbone, some, tmp_path, ("device", "disk-warm"), variants=["mort-2of4"])
    read = int(warm.packed._good.sum())
    warm.prepare(prompts.tokens_of(some))
    assert int(warm.packed._good.sum()) == read
    turns.run(warm, warm.passes_over(some[0]), some[0])
    assert int(warm.packed._good.sum()) > read


@pytest.mark.skipif(not os.access(ROOT, os.W_OK), reason="cgroup v1 as root")
def test_a_limit_leaves_a_quarter_of_the_records(tiny_store, tmp_path, capsys):
    words = ["bench", "decode", "demo", "--data", str(tiny_store), "--cap", "--repeats", "2", "--tokens", "2"]
    for placement in ("disk-warm", "sync-cold"):
        options = ["--variants", "mort-2of4", "--placements", placement, "--prompt-lengths", "4", "--json"]
        capsys.readouterr()
        assert main([*words, *options]) == 0
        found = json.loads(capsys.readouterr().out)["decode"]
        assert [row["placement"] for row in found] == ["", placement]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--variants", "retoken", "mort-2of4"], "--variants has 2; accepted with --cap: one"),
        (["--variants", "retoken"], "--placements has 6; accepted with --cap: one"),
        (["--variants", "retoken", "--placements", "host"], "--placements is host; accepted with --cap"),
    ],
)
def test_one_case_at_a_time_is_alone_in_a_limit(tiny_store, words, reason, capsys):
    assert main(["bench", "decode", "demo", "--data", str(tiny_store), "--cap", *words]) == 2
    assert reason in capsys.readouterr().err


def test_the_papers_protocol_serves_trained_rows(tiny_run, tiny_store, some, tmp_path):
    model = open_checkpoint(str(tiny_run("mort"))).model
    made = cases.trained_cases(model, ("host", "sync-host", "sync-cold"), folder=tmp_path)
    assert len(turns.take(made, some, lambda: None)) == 2 * len(made)
    _, resident, _, *others = (turns.run(case, case.passes_over(some[0]), some[0])[2] for case in made)
    for found in others:
        assert torch.allclose(found, resident, atol=1e-4)


def test_options_are_checked(tiny_store, capsys):
    words = ["bench", "decode", "demo", "--data", str(tiny_store)]
    for option, value in (("--repeats", "1"), ("--tokens", "0"), ("--batches", "0")):
        assert main([*words, option, value]) == 2
        assert f"{option} is" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--kernels", "triton"], "--kernels is triton on a CPU; accepted: eager"),
        (["--passes", "graph"], "--passes is graph on a CPU; accepted: eager"),
        (
            ["--passes", "compiled"],
            "--placements has disk-warm; accepted with --passes compiled: device, host",
        ),
        (["--device", "cuda"], "--device is cuda, and PyTorch finds no GPU; accepted: cpu"),
        (["--placements", "host-direct"], "--placements has host-direct"),
    ],
)
def test_what_a_cpu_has_not_is_refused(tiny_store, words, reason, capsys):
    assert main(["bench", "decode", "demo", "--data", str(tiny_store), *words]) == 2
    assert reason in capsys.readouterr().err


def test_without_a_compiler_nothing_is_compiled(tiny_store, capsys, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    words = ["--passes", "compiled", "--placements", "host"]
    assert main(["bench", "decode", "demo", "--data", str(tiny_store), *words]) == 2
    assert "--passes is compiled without a C++ compiler (c++" in capsys.readouterr().err


def test_a_vocabulary_without_the_text_s_tokens_is_refused(tiny_store, capsys):
    assert main(["bench", "decode", "demo", "--data", str(tiny_store), "--vocab-size", "70"]) == 2
    assert "--vocab-size is 70; accepted with token" in capsys.readouterr().err


def test_a_text_that_is_too_short_is_refused(tiny_store):
    with pytest.raises(ConfigError, match="--prompt-lengths has 9999999"):
        prompts.cut(tiny_store, count=1, batch=1, length=9999999, following=1, seed=0)


@pytest.mark.skipif(not os.access(ROOT, os.W_OK), reason="needs the memory cgroup, version 1, as root")
def test_a_table_is_served_within_a_quarter_of_its_size(tmp_path: Path):
    """The group counts the file's pages; the process's own few megabytes fit in as well."""
    options = {"preset": "demo", "variant": "mort-3of5", "rows": "float32", "share": 4}
    found = serve_within(tmp_path, vocab_size=60_000, tokens=10_240, on_part=lambda done: None, **options)
    assert found.limit * 4 <= found.table_bytes < found.limit * 4 + 4
    assert len(found.points) == 10 and all(point.charged <= found.limit for point in found.points)
    assert not list(ROOT.glob("retoken-*"))


def test_a_cold_case_reads_the_disk(backbone, some, tmp_path):
    case = _make(backbone, some, tmp_path, ("disk-cold",), variants=("retoken",))[1]
    dropped = []
    counted = replace(case, between=lambda: dropped.append(case.between()))
    turns.run(counted, counted.passes_over(some[0]), some[0])
    assert len(dropped) == 1 + some[0].following.shape[1]
