"""`retoken plan` from the outside: what it prints, and what it refuses in one line."""

import json
from pathlib import Path

import numpy as np
import pytest

from retoken import presets
from retoken.cli.main import main
from retoken.config import MoRTConfig
from retoken.plan import Batch, Frequencies, Job, Machine, Work, fit, plan
from retoken.presets import Backbone
from retoken.testing import tiny_model

SMALL = ["plan", "demo", "--variant", "mort", "--ranks", "4"]


def printed(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_json_is_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    rates = ("--flops", 2, "--link-bandwidth", 3, "--latency", 4, "--memory", 5)
    words = (*SMALL, "--zipf", 1.2, *rates, "--json")
    found = json.loads(printed(capsys, *words))
    machine = Machine(
        flops=2e12, memory_bandwidth=2e12, link_bandwidth=3e9, latency=4e-6, host_bandwidth=5e10
    )
    preset = presets.get("demo")
    job = Job(
        backbone=Backbone.of(preset),
        modulator=MoRTConfig(),
        batch=Batch(sequences=16, context_length=128, ranks=4),
        machine=machine,
        frequencies=Frequencies.zipf(2048, 1.2),
        memory=5e9,
    )
    expected = plan(job)
    assert found["parameters"] == expected.parameters
    assert found["outlooks"] == json.loads(json.dumps([each.to_dict() for each in expected.outlooks]))
    assert found["fewest_bytes"] == found["outlooks"][0]
    assert found["unique"] == expected.unique and found["fit"] is None


def test_loads_are_counted_ahead_where_training_does_so(capsys: pytest.CaptureFixture[str]) -> None:
    def compute(*words: object) -> float:
        found = json.loads(printed(capsys, *SMALL, *words, "--json"))
        return found["fastest"]["time"]["compute"] / found["base_time"]["compute"]

    parts = ("--micro-batch-size", 2)
    assert compute() == 1 and compute("--counting-pass", "on") == pytest.approx(4 / 3)
    assert compute(*parts) == pytest.approx(4 / 3) and compute(*parts, "--counting-pass", "off") == 1
    assert compute(*parts, "--mort.balance-coef", 0) == 1


def test_the_page_names_what_was_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, *SMALL)
    for words in (
        "demo, mort, 4 ranks: prediction",
        "rho 0.6",
        "VxE (2 x 2)",
        "replicated   naive",
        "weight gradients",
        "table optimizer",
        "fewest bytes: layout V (4 x 1), exchange mixed",
        "4.08 bytes a table parameter, against 16",
    ):
        assert words in out, words
    assert max(map(len, out.splitlines())) <= 100


def test_options_reach_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    tables = ["--tables.optimizer", "row_wise", "--tables.dtype", "bfloat16", "--tables.memory", "host"]
    grid = ["--tables.layout", "VxE", "--tables.exchange", "routed", "--tables.ranks", "4"]
    more = [
        "--table-weight-decay",
        "0.1",
        "--data-parallel",
        "fsdp",
        "--ranks",
        "8",
        "--micro-batch-size",
        "1",
    ]
    found = json.loads(printed(capsys, *SMALL, *tables, *grid, *more, "--json"))
    (only,) = found["outlooks"]
    assert (only["layout"], only["name"]) == ("VxE", "routed")
    assert only["grid"] == {"vocab_shards": 2, "modulator_shards": 2}
    assert only["memory"]["host"]["table rows"] == 3 * 1024 * 3 * 64 * 2
    assert only["memory"]["host"]["table optimizer"] == 3 * 1024 * (3 * 4 + 4 + 8)
    assert "backbone gathered" in only["memory"]["device"]
    assert "replica gradients" in only["bytes"]
    assert found["bytes_per_table_parameter"] == pytest.approx(2 + 4 / 64 + 12 / 320)


def test_a_store_gives_counts_vocabulary_and_real_batches(
    capsys: pytest.CaptureFixture[str], tiny_store: Path
) -> None:
    sizes = ["--batch-size", "8", "--context-length", "64"]
    found = json.loads(printed(capsys, *SMALL, *sizes, "--data", tiny_store, "--json"))
    assert [each["tokens"] for each in found["measured_unique"]] == [64, 128, 512]
    assert found["parameters"]["table_params"] == 5 * 3 * 300 * 64
    assert found["unique"]["step"] == pytest.approx(found["measured_unique"][-1]["measured"])
    counts = tiny_store / "token_counts.npy"
    plain = json.loads(printed(capsys, *SMALL, *sizes, "--vocab-size", 300, "--counts", counts, "--json"))
    assert plain["unique"]["step"] == pytest.approx(found["measured_unique"][-1]["independent"])
    page = printed(capsys, *SMALL, *sizes, "--data", tiny_store)
    line = next(line for line in page.splitlines() if "emp-group" in line)
    assert "512" in line and f"{found['measured_unique'][-1]['ratio']:.3f}" in line


def test_a_models_folder_in_place_of_a_preset(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.config.save_pretrained(tmp_path)
    words = ["plan", "--model", tmp_path, "--batch-size", 4, "--context-length", 16, "--json"]
    found = json.loads(printed(capsys, *words))
    assert found["parameters"]["backbone_params"] == sum(p.numel() for p in model.parameters())
    assert found["parameters"]["table_params"] == 3 * 131 * 32


def test_nothing_attached_has_no_layouts(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "plan", "demo", "--variant", "baseline")
    assert "backbone optimizer" in out and "layout" not in out
    found = json.loads(printed(capsys, "plan", "demo", "--variant", "baseline", "--json"))
    assert found["outlooks"] == [] and found["fewest_bytes"] is None


def _measurements(path: Path) -> Path:
    works = [
        (
            Work(forward_flops=1e9 * n, backward_flops=2e9 * n, waited_bytes=1e6 * n * n),
            0.3 * n + 0.01 * n * n,
        )
        for n in range(1, 9)
    ]
    fit.write(
        path,
        [
            fit.Measurement(name=f"run {i}", held_out=i == 4, seconds=seconds, work=work)
            for i, (work, seconds) in enumerate(works)
        ],
    )
    return path


def test_a_fit_is_printed_alone_or_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = _measurements(tmp_path / "m.csv")
    found = json.loads(printed(capsys, "plan", "--fit", path, "--json"))
    assert found["machine"]["flops"] == pytest.approx(1e10, rel=1e-2)
    assert found["machine"]["link_bandwidth"] == pytest.approx(1e8, rel=1e-2)
    assert list(found["held_out"]) == ["run 4"] and found["worst_held_out"] < 1e-3
    page = printed(capsys, "plan", "--fit", path)
    assert "held out" in page and "0.01 TFLOP/s" in page and "fewest bytes" not in page
    both = json.loads(printed(capsys, *SMALL, "--fit", path, "--json"))
    assert both["machine"] == both["fit"]["machine"] == found["machine"]
    assert "fewest bytes" in printed(capsys, *SMALL, "--fit", path)


def test_rows_by_bigrams_are_counted_in_a_store(capsys: pytest.CaptureFixture[str], tiny_store: Path) -> None:
    sizes = ["--batch-size", "8", "--context-length", "64", "--data", tiny_store, "--json"]
    both = ["--mort.index", "token_bigram", "--mort.index-size", "2"]
    found = json.loads(printed(capsys, *SMALL, *sizes, *both))
    assert found["parameters"]["table_params"] == 5 * 3 * 900 * 64
    plain = json.loads(printed(capsys, *SMALL, *sizes))
    assert found["unique"]["step"] == pytest.approx(found["measured_unique"][-1]["measured"])
    assert plain["unique"]["step"] < found["unique"]["step"] <= plain["unique"]["step"] + 8 * 64


def _file(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


CASES = {
    "no preset": (["plan"], "preset is '' and --model is ''; accepted: exactly one"),
    "unknown preset": (["plan", "dmo"], "preset is 'dmo' (did you mean demo?)"),
    "no ranks": (["plan", "demo", "--ranks", "0"], "ranks is 0; accepted: an integer from 1"),
    "uneven ranks": (["plan", "demo", "--ranks", "3"], "batch_size is 16 with 3 ranks"),
    "tables over ranks that do not divide": (
        [*SMALL, "--tables.ranks", "3"],
        "tables.ranks is 3 with 4 ranks; accepted: a divisor of 4",
    ),
    "more shards than token ids": (
        [*SMALL, "--vocab-size", "3", "--tables.layout", "V"],
        "tables.layout is V over 4 ranks, some of which would own nothing; accepted: up to 3",
    ),
    "more shards than modulators": (
        [*SMALL, "--tables.layout", "E", "--mort.num-modulators", "3"],
        "tables.layout is E over 4 ranks",
    ),
    "modulators to divide where there are none": (
        ["plan", "demo", "--ranks", "4", "--tables.layout", "E"],
        "tables.layout is E over 4 ranks",
    ),
    "unknown layout": ([*SMALL, "--tables.layout", "rows"], "invalid choice 'rows'"),
    "an exchange of routers": (
        ["plan", "demo", "--ranks", "4", "--tables.exchange", "mixed"],
        "tables.exchange is 'mixed'; accepted: auto, early",
    ),
    "negative bandwidth": ([*SMALL, "--link-bandwidth", "-1"], "link_bandwidth is -1000000000.0; accepted"),
    "no arithmetic": ([*SMALL, "--flops", "0"], "flops is 0.0; accepted: a number above 0"),
    "negative latency": ([*SMALL, "--latency", "-1"], "latency is"),
    "negative decay": ([*SMALL, "--table-weight-decay", "-1"], "table_weight_decay is -1.0; accepted"),
    "negative memory": ([*SMALL, "--memory", "-1"], "memory is -1.0; accepted: a number from 0"),
    "overlap above 1": ([*SMALL, "--overlap", "2"], "overlap is 2.0; accepted: a number from 0 to 1"),
    "negative exponent": ([*SMALL, "--zipf", "-1"], "zipf is -1.0; accepted: an exponent from 0"),
    "two sources": ([*SMALL, "--zipf", "1", "--counts", "x.npy"], "--counts and --zipf are given"),
    "missing counts": ([*SMALL, "--counts", "{tmp}/none.npy"], "none.npy cannot be read"),
    "counts that are text": ([*SMALL, "--counts", "{tmp}/text.npy"], "text.npy cannot be read: not a NumPy"),
    "counts that are numbers": ([*SMALL, "--counts", "{tmp}/floats.npy"], "floats.npy hold float64 [4]"),
    "counts of another vocabulary": ([*SMALL, "--counts", "{tmp}/long.npy"], "shape [4000]"),
    "bigrams in no store": (
        [*SMALL, "--mort.index", "token_bigram"],
        "--mort.index is 'token_bigram' without --data; accepted: a token store",
    ),
    "missing store": ([*SMALL, "--data", "{tmp}/none"], "none does not exist"),
    "measurements that are none": ([*SMALL, "--fit", "{tmp}/text.npy"], "text.npy have no column held_out"),
    "missing measurements": (["plan", "--fit", "{tmp}/none.csv"], "none.csv cannot be read"),
    "no model there": (
        ["plan", "--model", "{tmp}", "--batch-size", "1", "--context-length", "8"],
        "no config.json",
    ),
    "model without a batch": (["plan", "--model", "{tmp}/broken"], "given without --batch-size and"),
    "broken model": (
        ["plan", "--model", "{tmp}/broken", "--batch-size", "1", "--context-length", "8"],
        "config.json is not readable",
    ),
    "micro-batch beyond the share": ([*SMALL, "--micro-batch-size", "5"], "micro_batch_size is 5; accepted"),
    "options of another variant": (
        ["plan", "demo", "--mort.top-k", "2"],
        "--mort.* is given with --variant retoken",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_line(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _file(tmp_path / "text.npy", "id,count\n1,2\n")
    np.save(tmp_path / "floats.npy", np.ones(4))
    np.save(tmp_path / "long.npy", np.ones(4000, int))
    (tmp_path / "broken").mkdir()
    _file(tmp_path / "broken" / "config.json", "{")
    words, says = CASES[name]
    code = main([word.replace("{tmp}", str(tmp_path)) for word in words])
    out, err = capsys.readouterr()
    assert code == 2 and out == "", err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert says in err
