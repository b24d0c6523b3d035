"""What a user can get wrong, through the real command line: exit code 2, one line that says what and where,
no traceback, nothing half-written, and nothing of the user's touched."""

import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retoken.testing import tiny_model

Words = list[object]
Cli = Callable[..., Any]


class Desk:
    """What lies before the user: an empty folder, a good corpus, a good store, good runs."""

    def __init__(self, folder: Path, corpus: Path, store: Path, run: Callable[[str], Path]) -> None:
        self.folder, self.corpus, self.store, self._run = folder, corpus, store, run

    def file(self, name: str, content: str | bytes = "") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def own_store(self) -> Path:
        """A copy of the store that may be damaged."""
        return Path(shutil.copytree(self.store, self.folder / "store"))

    def own_run(self, variant: str = "mort") -> Path:
        """A copy of a finished run that may be damaged."""
        return Path(shutil.copytree(self._run(variant), self.folder / "run"))

    def own_model(self) -> Path:
        """A copy of a trained model's folder that may be damaged."""
        return Path(shutil.copytree(self._run("mort") / "model", self.folder / "model"))

    def prepare(self, corpus: object, *options: object) -> Words:
        given = ["--corpus", corpus, "--out", self.folder / "out", "--workers", 1, "--vocab-size", 300]
        return ["prepare", *given, *options]

    def train(self, *options: object, data: Path | None = None, preset: tuple[str, ...] = ("demo",)) -> Words:
        small = ["--steps", 2, "--batch-size", 4, "--context-length", 32, "--out", self.folder / "out"]
        return ["train", *preset, "--data", data or self.store, *small, *options]

    def compare(self, *options: object) -> Words:
        return ["compare", "demo", "--data", self.store, "--out", self.folder / "out", "--steps", 2, *options]


@pytest.fixture
def desk(tmp_path: Path, tiny_corpus: Path, tiny_store: Path, tiny_run: Callable[[str], Path]) -> Desk:
    return Desk(tmp_path, tiny_corpus, tiny_store, tiny_run)


def truncated(path: Path) -> Path:
    """The file, shorter by its second half."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def edited(path: Path, **values: Any) -> Path:
    """The JSON file with these fields."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return path


def _truncated_shard(d: Desk) -> Words:
    store = d.own_store()
    truncated(next(store.glob("**/*.bin")))
    return d.train(data=store)


def _truncated_manifest(d: Desk) -> Words:
    store = d.own_store()
    truncated(store / "manifest.json")
    return d.train(data=store)


def _newer_store(d: Desk) -> Words:
    store = d.own_store()
    edited(store / "manifest.json", format_version=99)
    return d.train(data=store)


def _store_without_tokenizer(d: Desk) -> Words:
    store = d.own_store()
    (store / "tokenizer" / "tokenizer.json").unlink()
    return d.train(data=store)


def _prepare_into_other(d: Desk) -> Words:
    d.file("out/thesis.txt", "years of work")
    return d.prepare(d.corpus)


def _train_into_other(d: Desk) -> Words:
    d.file("out/thesis.txt", "years of work")
    return d.train()


def _other_options(d: Desk) -> Words:
    run = d.own_run()
    return ["train", "demo", "--data", d.store, *_RUN_OPTIONS, "--out", run, "--lr", 0.5]


def _truncated_checkpoint(d: Desk) -> Words:
    run = d.own_run()
    (run / "result.json").unlink()
    truncated(run / "checkpoints" / "step-000003" / "shard-00001-of-00001.safetensors")
    return ["train", "demo", "--data", d.store, *_RUN_OPTIONS, "--out", run]


def _foreign_checkpoint(d: Desk) -> Words:
    run = d.own_run()
    (run / "result.json").unlink()
    (run / "checkpoints" / "step-000003" / "state.json").write_text('{"some": "thing"}')
    return ["train", "demo", "--data", d.store, *_RUN_OPTIONS, "--out", run]


def _inspect_packed(d: Desk) -> Words:
    from retoken.serving.artifact import write_artifact

    write_artifact(d.own_model(), d.folder / "packed")
    return ["inspect", d.folder / "packed", "--data", d.store]


def _export_damaged(d: Desk) -> Words:
    shard = next(d.own_run().glob("checkpoints/*/shard-*"))
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    return ["export", d.folder / "run", "--out", d.folder / "new"]


# What the fixture `tiny_run` was trained with.
_RUN_OPTIONS = ("--variant", "mort", "--steps", 3, "--batch-size", 4, "--context-length", 32)


def _small_vocabulary(d: Desk) -> Words:
    tiny_model("llama").save_pretrained(d.folder / "small")
    return d.train("--model", d.folder / "small", "--variant", "retoken", preset=())


def _unknown_family(d: Desk) -> Words:
    from transformers import BloomConfig, BloomForCausalLM

    config = BloomConfig(vocab_size=300, hidden_size=32, n_layer=2, n_head=2)
    BloomForCausalLM(config).save_pretrained(d.folder / "bloom")
    return d.train("--model", d.folder / "bloom", "--variant", "retoken", preset=())


def _truncated_weights(d: Desk) -> Words:
    model = d.own_model()
    truncated(model / "model.safetensors")
    return ["eval", model, "--data", d.store]


def _missing_weights(d: Desk) -> Words:
    model = d.own_model()
    (model / "model.safetensors").unlink()
    return ["eval", model, "--data", d.store]


def _foreign_weights(d: Desk) -> Words:
    model = d.own_model()
    tiny_model("gpt2").save_pretrained(d.folder / "gpt2")
    shutil.copy(d.folder / "gpt2" / "model.safetensors", model)
    return ["eval", model, "--data", d.store]


def _broken_config(d: Desk) -> Words:
    model = d.own_model()
    truncated(model / "config.json")
    return ["generate", model]


def _newer_modulator(d: Desk) -> Words:
    model = d.own_model()
    written = json.loads((model / "config.json").read_text())["retoken"]
    written["modulator"]["format_version"] = 99
    edited(model / "config.json", retoken=written)
    return ["generate", model]


def _broken_tokenizer(d: Desk) -> Words:
    model = d.own_model()
    truncated(model / "tokenizer.json")
    return ["generate", model]


def _other_tokenizer(d: Desk) -> Words:
    model = d.own_model()
    path = model / "tokenizer.json"
    vocabulary = json.loads(path.read_text())
    ids = vocabulary["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    path.write_text(json.dumps(vocabulary))
    return ["eval", model, "--data", d.store]


def _no_tokenizer(d: Desk) -> Words:
    model = d.own_model()
    for path in model.glob("tokenizer*"):
        path.unlink()
    return ["generate", model]


def _other_comparison(d: Desk) -> Words:
    d.file("out/thesis.txt", "years of work")
    return d.compare()


CASES: dict[str, tuple[Callable[[Desk], Words], str]] = {
    # the command line itself
    "no verb": (lambda d: [], "usage"),
    "unknown verb": (lambda d: ["tarin"], "unknown verb 'tarin'; accepted: prepare"),
    "unknown option": (lambda d: d.train("--learning-rate", 1), "unrecognized options: --learning-rate"),
    "missing option": (lambda d: ["train", "demo"], "required options: --data"),
    "no value": (lambda d: d.train("--lr"), "Missing value for argument '--lr'"),
    "not a number": (lambda d: d.train("--seed", "zero"), "--seed: invalid literal"),
    "unknown choice": (lambda d: d.train("--variant", "jtok"), "variant is 'jtok'; accepted: baseline"),
    # text
    "missing corpus": (lambda d: d.prepare(d.folder / "none.txt"), "none.txt"),
    "empty file": (lambda d: d.prepare(d.file("empty.txt")), "empty.txt"),
    "empty folder": (lambda d: d.prepare(d.file("texts/notes.pdf", "x").parent), "texts"),
    "broken jsonl": (lambda d: d.prepare(d.file("a.jsonl", '{"text": "a"}\n{"text": \n')), "a.jsonl"),
    "jsonl without the field": (lambda d: d.prepare(d.file("a.jsonl", '{"body": "a"}\n')), "text"),
    "jsonl with a number for text": (lambda d: d.prepare(d.file("a.jsonl", '{"text": 3}\n')), "a.jsonl"),
    "not UTF-8": (
        lambda d: d.prepare(d.file("latin.txt", "naïve café ".encode("latin-1") * 99)),
        "latin.txt",
    ),
    "truncated gzip": (
        lambda d: d.prepare(d.file("a.txt.gz", gzip.compress(b"text " * 9999)[:60])),
        "a.txt.gz",
    ),
    "not gzip": (lambda d: d.prepare(d.file("a.txt.gz", "plain")), "a.txt.gz"),
    "not zstandard": (lambda d: d.prepare(d.file("a.jsonl.zst", "plain")), "a.jsonl.zst"),
    "not parquet": (lambda d: d.prepare(d.file("a.parquet", "plain")), "a.parquet"),
    "unknown file type": (lambda d: d.prepare(d.file("a.docx", "plain")), "a.docx"),
    "too little text": (lambda d: d.prepare(d.file("a.txt", "one line"), "--vocab-size", 257), "a.txt"),
    "vocabulary below the bytes": (lambda d: d.prepare(d.corpus, "--vocab-size", 100), "accepted: 257"),
    "all held out": (lambda d: d.prepare(d.corpus, "--val-fraction", 1), "--val-fraction is 1"),
    "missing tokenizer": (lambda d: d.prepare(d.corpus, "--tokenizer", d.folder / "none"), "--tokenizer"),
    "out is a file": (lambda d: d.prepare(d.corpus, "--out", d.file("taken", "x")), "taken"),
    "out below a file": (lambda d: d.prepare(d.corpus, "--out", d.file("taken", "x") / "out"), "taken"),
    "out holds something else": (_prepare_into_other, "out"),
    # training
    "no store": (lambda d: d.train(data=d.folder / "none"), "none does not exist"),
    "a folder that is no store": (
        lambda d: d.train(data=d.file("dir/a", "x").parent),
        "not a prepared token store",
    ),
    "truncated shard": (_truncated_shard, "truncated"),
    "truncated manifest": (_truncated_manifest, "manifest.json"),
    "newer store": (_newer_store, "format_version 99"),
    "store without its tokenizer": (_store_without_tokenizer, "tokenizer.json is missing"),
    "unknown preset": (lambda d: d.train(preset=("dmo",)), "dmo"),
    "no preset": (lambda d: d.train(preset=()), "preset is missing; accepted"),
    "K above n_e": (lambda d: d.train("--variant", "mort", "--mort.top-k", 9), "top_k is 9; accepted: 1..5"),
    "no modulators": (
        lambda d: d.train("--variant", "mort", "--mort.num-modulators", 0),
        "num_modulators is 0",
    ),
    "delay beyond the depth": (
        lambda d: d.train("--variant", "mort", "--mort.injection-delay", 9),
        "injection_delay is 9; accepted: below",
    ),
    "layer out of range": (
        lambda d: d.train("--variant", "retoken", "--retoken.layers", 0, 7),
        r"layers is \[0, 7\]; accepted: 0..2",
    ),
    "options of another variant": (lambda d: d.train("--mort.top-k", 2), "accepted: --variant mort"),
    "steps and tokens": (lambda d: d.train("--tokens", 5000), "--steps and --tokens"),
    "rate that is no number": (lambda d: d.train("--lr", "nan"), "lr is nan"),
    "negative decay": (lambda d: d.train("--weight-decay", -1), "weight_decay is -1"),
    "uneven micro-batches": (lambda d: d.train("--micro-batch-size", 3), "micro_batch_size is 3; accepted"),
    "context longer than the text": (lambda d: d.train("--context-length", 999999), "context"),
    "no GPU": (lambda d: d.train("--device", "cuda"), "device is 'cuda'"),
    "folder of something else": (_train_into_other, "holds something else"),
    "folder of another run": (_other_options, "with lr 0.003, not 0.5"),
    "truncated checkpoint": (
        _truncated_checkpoint,
        r"shard-00001\S* has .* bytes, .* delete .* to train",
    ),
    "foreign checkpoint": (_foreign_checkpoint, "state.json: not a training checkpoint"),
    "missing pretrained model": (lambda d: d.train("--model", d.folder / "none", preset=()), "none"),
    "ids beyond the model's table": (_small_vocabulary, "300 token ids; accepted: up to the 131"),
    "unknown family": (_unknown_family, "model_type 'bloom' is not a known family"),
    # comparing
    "unknown variant": (lambda d: d.compare("--variants", "baseline", "jtok"), "'jtok'; accepted: baseline"),
    "a seed twice": (lambda d: d.compare("--seeds", 1, 1), "seeds has 1 twice"),
    "negative seed": (lambda d: d.compare("--seeds", -1), "seeds has -1|seeds"),
    "folder of no comparison": (_other_comparison, "out"),
    "report of nothing": (lambda d: ["compare", "--report-only", d.folder / "none"], "none"),
    # checkpoints
    "missing checkpoint": (lambda d: ["eval", d.folder / "none", "--data", d.store], "none does not exist"),
    "checkpoint is a file": (lambda d: ["generate", d.file("a.bin", "x")], "a.bin is a file"),
    "folder without a model": (lambda d: ["generate", d.file("dir/a", "x").parent], "has no config.json"),
    "truncated weights": (_truncated_weights, "model: a safetensors file is broken"),
    "missing weights": (_missing_weights, "model: not loadable"),
    "another family's weights": (_foreign_weights, "model: "),
    "broken config": (_broken_config, "model: not loadable"),
    "newer modulator": (_newer_modulator, "format_version is 99; accepted: 1..1"),
    "broken tokenizer": (_broken_tokenizer, "tokenizer does not load"),
    "another tokenizer": (_other_tokenizer, "another tokenizer"),
    "no tokenizer": (_no_tokenizer, "no tokenizer there"),
    "context beyond the positions": (
        lambda d: ["eval", d.own_run(), "--data", d.store, "--context-length", 10**6],
        "--context-length is 1000000; accepted: 1..",
    ),
    "export of nothing": (lambda d: ["export", d.folder / "no", "--out", d.folder / "x"], "no is no folder"),
    "export of a model": (
        lambda d: ["export", d.own_model(), "--out", d.folder / "x"],
        "model holds no training checkpoint; accepted: a run folder",
    ),
    "export onto something": (lambda d: ["export", d.own_run(), "--out", d.folder / "run"], "run exists"),
    "export in parts of no size": (
        lambda d: ["export", d.own_run(), "--out", d.folder / "x", "--max-shard-size", "big"],
        "--max-shard-size is 'big'; accepted",
    ),
    "export of a damaged checkpoint": (_export_damaged, "is damaged .crc32"),
    "neither data nor text": (
        lambda d: ["eval", d.own_run()],
        "--data or --text is needed, or --tasks; found neither",
    ),
    "nothing to measure against": (
        lambda d: ["eval", d.own_run(), "--data", d.store, "--against", d.folder / "none"],
        "checkpoint .*none does not exist",
    ),
    "counts that nothing asks for": (
        lambda d: ["eval", d.own_run(), "--data", d.store, "--by", "part", "--counts", d.store],
        "--counts is .*store; accepted with --by band or --by row",
    ),
    "bands without a store": (
        lambda d: ["eval", d.own_model(), "--text", d.file("a.txt", "a cat"), "--by", "band"],
        "names 0 stores; accepted: --counts STORE",
    ),
    "unknown kind of token": (
        lambda d: ["eval", d.own_run(), "--data", d.store, "--by", "colour"],
        "colour.*--by",
    ),
    "figure of another kind": (
        lambda d: ["eval", d.own_run(), "--data", d.store, "--by", "part", "--plot", d.folder / "a.png"],
        "--plot is .*a.png; accepted: a file name that ends in .svg",
    ),
    "figure of one number": (
        lambda d: ["eval", d.own_run(), "--data", d.store, "--plot", d.folder / "a.svg"],
        "with one number to draw; accepted: with --by, --against",
    ),
    "figure in a file": (
        lambda d: [
            *("eval", d.own_run(), "--data", d.store, "--by", "part"),
            *("--plot", d.file("a.txt", "x") / "a.svg"),
        ],
        "--plot is .*a.svg, and .*a.txt is no folder",
    ),
    "share to prune that is none": (
        lambda d: ["export", d.own_run(), "--out", d.folder / "x", "--prune", "1.5"],
        "--prune is 1.5; accepted: a share above 0 and below 1",
    ),
    "loss to prune for that is none": (
        lambda d: ["export", d.own_run(), "--out", d.folder / "x", "--prune-loss", "nan"],
        "--prune-loss is nan; accepted: nats per token",
    ),
    "pruned by share and by loss": (
        lambda d: ["export", d.own_run(), "--out", d.folder / "x", "--prune", 0.5, "--prune-loss", 0.1],
        "--prune is 0.5 and --prune-loss is 0.1; accepted: one of them",
    ),
    "pruned by no loss": (
        lambda d: ["export", d.own_run(), "--out", d.folder / "x", "--prune", 0.5, "--loss", "off"],
        "--loss is off and rows are to be pruned",
    ),
    "pruned without a store": (
        lambda d: ["export", d.own_model(), "--out", d.folder / "x", "--prune", 0.5],
        "rows are to be pruned and .*model has no run with its store; accepted: --data STORE",
    ),
    "pruned by one window": (
        lambda d: ["export", d.own_run(), "--out", d.folder / "x", "--prune", 0.5, "--eval-tokens", 40],
        "1 held-out window where 40 tokens are read; accepted: two or more",
    ),
    "nothing to inspect": (
        lambda d: ["inspect", d.own_run("baseline")],
        "carries no token-indexed parameters; accepted: a model trained with --variant retoken or mort",
    ),
    "inspecting packed rows": (
        _inspect_packed,
        "packed: its rows are packed; accepted: the checkpoint it was",
    ),
    "inspecting a missing checkpoint": (lambda d: ["inspect", d.folder / "none"], "none does not exist"),
    "neighbours of several tokens": (
        lambda d: ["inspect", d.own_model(), "--tokens", "the cat runs"],
        "--tokens: 'the cat runs' is .* tokens; accepted: the text of one token",
    ),
    "too few rows to check": (
        lambda d: ["inspect", d.own_run(), "--check", 1],
        "--check is 1; accepted: 2 or",
    ),
    "a figure of no losses": (
        lambda d: ["inspect", d.own_model(), "--figure", d.folder / "x.svg"],
        "--figure is .*x.svg and no token store is there; accepted: --data STORE",
    ),
    "a page onto a folder": (
        lambda d: ["inspect", d.own_run(), "--out", d.folder / "run"],
        "--out .*run is a folder; accepted: a file",
    ),
    "missing text": (lambda d: ["eval", d.own_run(), "--text", d.folder / "none"], "none cannot be read"),
    "empty text": (lambda d: ["eval", d.own_run(), "--text", d.file("a.txt", " \n")], "a.txt is empty"),
    "text that is not UTF-8": (
        lambda d: ["eval", d.own_run(), "--text", d.file("a", b"\xff\xfe")],
        "not UTF-8",
    ),
    "tasks and data": (
        lambda d: ["eval", d.own_run(), "--tasks", "arc_easy", "--data", d.store],
        "--data is .* with --tasks; accepted: --tasks without it",
    ),
    "a limit of tasks without tasks": (
        lambda d: ["eval", d.own_run(), "--data", d.store, "--limit", 5],
        "--limit is 5; accepted with --tasks only",
    ),
    "less than no documents": (
        lambda d: ["eval", d.own_run(), "--tasks", "arc_easy", "--limit", -1],
        "--limit is -1; accepted: 0 or more",
    ),
    "prompt beyond the positions": (
        lambda d: ["generate", d.own_run(), "--prompt", "cat " * 5000],
        "accepted: together up to the model's",
    ),
    "negative temperature": (lambda d: ["generate", d.own_run(), "--temperature", -1], "--temperature is -1"),
    "unknown preset to count": (lambda d: ["presets", "none"], "none"),
}


def _state(folder: Path) -> dict[str, str]:
    """Every file below a folder and a digest of its content."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_refused(code: int, err: str, says: str) -> None:
    """Exit code 2 and one line on stderr that matches `says`."""
    assert code == 2, err
    assert err.count("\n") == 1 and err.endswith("\n"), f"not one line: {err!r}"
    assert err.startswith("retoken"), err
    assert "Traceback" not in err and "Error parsing" not in err.replace("Error parsing --", ""), err
    assert re.search(says, err), f"{says!r} is not in {err!r}"


@pytest.mark.parametrize("name", [name for name in CASES if name != "no verb"])
def test_bad_input_is_refused_in_one_line(cli: Cli, desk: Desk, name: str) -> None:
    build, says = CASES[name]
    words = build(desk)
    before, outside = _state(desk.folder), _state(desk.store)
    code, out, err = cli(*words)
    assert_refused(code, err, says)
    assert out == ""
    after = _state(desk.folder)
    assert {path: after.get(path) for path in before} == before, "a file of the user's changed"
    # A claimed run folder may say whose it is; nothing else may be left behind.
    assert {Path(path).name for path in after.keys() - before.keys()} <= {"config.json"}
    assert _state(desk.store) == outside


def test_no_verb_prints_the_verbs(cli: Cli) -> None:
    code, out, err = cli()
    assert code == 2 and err == "" and "usage: retoken <verb>" in out


def test_at_least_25_kinds() -> None:
    assert len(CASES) >= 25
