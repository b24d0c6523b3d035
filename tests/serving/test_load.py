"""retoken.load: rows go straight into their tier, and outputs are the resident model's."""

import importlib
import json
import resource
import tracemalloc

import pytest
import safetensors.torch
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import retoken
from retoken.errors import AttachError, CheckpointError, ConfigError
from retoken.nn import TokenTable
from retoken.serving import PackedFile, RecordLayout, packed, reader
from retoken.serving.artifact import write_artifact
from retoken.testing import VOCAB, WIDTH, aligned, tiny_model, token_ids


@torch.no_grad()
def logits(model):
    return aligned(model)(input_ids=token_ids(3, 11)).logits


@pytest.fixture
def saved(build, tmp_path):
    """Saves a model and gives its folder."""

    def save(name="mort", **options):
        build(name, **options).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return save


@pytest.mark.parametrize("tables", ["device", "host", "disk"])
@pytest.mark.parametrize("folded", [False, True])
def test_a_folder_computes_what_its_model_does(build, kind, saved, tmp_path, tables, folded):
    wanted = logits(build(kind, folded=folded))
    path = tmp_path / "rows.safetensors" if tables == "disk" else None
    model = retoken.load(saved(kind, folded=folded), tables, path=path)
    assert torch.equal(wanted, logits(model)) and not model.training


@pytest.mark.parametrize("rows", ["bfloat16", "int8"])
@pytest.mark.parametrize("tables", ["device", "host", "disk"])
def test_rows_are_rounded_as_place_rounds_them(build, saved, tmp_path, tables, rows):
    placed = build("retoken")
    retoken.place(placed, "host", rows=rows)
    path = tmp_path / "rows" if tables == "disk" else None
    model = retoken.load(saved("retoken"), tables, path=path, rows=rows)
    assert torch.equal(logits(placed), logits(model))
    assert model.retoken.source.placement.rows == rows


@pytest.mark.parametrize("tables", ["host", "disk"])
def test_no_table_is_ever_made(saved, tmp_path, monkeypatch, tables):
    folder, path = saved(), tmp_path / "rows" if tables == "disk" else None

    def refuse(*options):
        raise AssertionError("a table was made")

    monkeypatch.setattr(TokenTable, "__init__", refuse)
    model = retoken.load(folder, tables, path=path)
    assert not any("table" in name for name, _ in model.named_parameters())
    assert sum(p.numel() for p in model.parameters()) < VOCAB * WIDTH * 10


def test_a_cascade_and_another_type_of_arithmetic(saved, tmp_path):
    folder, counts = saved("retoken", dtype=torch.bfloat16), torch.arange(VOCAB)
    model = AutoModelForCausalLM.from_pretrained(folder)
    loaded = retoken.load(folder, "disk", path=tmp_path / "rows", budget={"host": 20 * 256}, counts=counts)
    assert [use.tokens for use in loaded.retoken.source.placement.tiers] == [20, VOCAB - 20]
    assert torch.equal(logits(model), logits(loaded))
    wide = retoken.load(tmp_path / "model", "host", dtype=torch.float32)
    resident = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert wide.dtype == torch.float32 and torch.equal(logits(resident), logits(wide))


def test_what_is_left_in_memory_is_not_in_the_config(saved):
    model = retoken.load(saved(), "host")
    assert set(model.config.retoken) == {"modulator", "family"}


def test_an_existing_file_is_served_without_reading_the_tables(build, saved, tmp_path, monkeypatch):
    folder = saved()
    retoken.pack(folder, tmp_path / "rows")

    def refuse(*options):
        raise AssertionError("all rows were read")

    monkeypatch.setattr(packed, "blocks", refuse)
    block = reader.FolderReader.block
    few = lambda self, a, b: block(self, a, b) if b - a == 1 else refuse()  # noqa: E731
    monkeypatch.setattr(reader.FolderReader, "block", few)
    model = retoken.load(folder, "disk", path=tmp_path / "rows")
    assert torch.equal(logits(build("mort")), logits(model))


def test_verify_compares_with_the_folder(build, saved):
    model = retoken.load(saved(), "host", rows="int8", verify=True)
    logits(model)
    model.retoken.source._tiers[0].records[:, 3] ^= 1
    with pytest.raises(CheckpointError, match="differ from those they were made of"):
        logits(model)


def test_what_is_missing_is_refused(saved, tmp_path):
    folder = saved("retoken")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    for key, what in (("table", "layer 1's are missing"), ("scale", r"layers\.1\.scale is not in")):
        fewer = {k: v for k, v in weights.items() if k != f"retoken.layers.1.{key}"}
        safetensors.torch.save_file(fewer, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=what):
            retoken.load(folder, "host")


def test_tables_of_another_shape_are_refused(saved):
    folder = saved("retoken")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["retoken.layers.1.table"] = torch.zeros(VOCAB - 1, WIDTH)
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=rf"layer 1 are \[{VOCAB - 1}, {WIDTH}\], \[{VOCAB}, {WIDTH}\] by"
    ):
        retoken.load(folder, "host")


def test_what_cannot_be_done_is_refused(saved, tmp_path):
    folder = saved()
    with pytest.raises(ConfigError, match="path is None; accepted"):
        retoken.load(folder, "disk")
    with pytest.raises(ConfigError, match="tables is 'tape'"):
        retoken.load(folder, "tape")
    with pytest.raises(ConfigError, match="output_loading_info"):
        retoken.load(folder, "host", output_loading_info=True)
    tiny_model("llama").save_pretrained(tmp_path / "plain")
    with pytest.raises(AttachError, match="no field 'retoken'"):
        retoken.load(tmp_path / "plain")
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        retoken.load(tmp_path / "gone")


# The artefact: a folder whose rows are in a file of their own.


@pytest.fixture
def artifact(saved, tmp_path):
    """Makes one, and gives its folder."""

    def make(name="mort", **options):
        write_artifact(saved(name), tmp_path / "artifact", **options)
        return tmp_path / "artifact"

    return make


@pytest.mark.parametrize("fold", [False, True])
def test_an_artefact_computes_what_its_model_does(build, kind, artifact, fold):
    wanted = logits(build(kind, folded=fold))
    folder = artifact(kind, fold=fold)
    assert not any("table" in k for k in safetensors.torch.load_file(folder / "model.safetensors"))
    for tables in (None, "device", "host", "disk"):
        assert torch.equal(wanted, logits(retoken.load(folder, tables)))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(wanted, logits(model))
    assert model.retoken.source.placement.path == str(folder / "rows.safetensors")


@pytest.mark.parametrize("name", ["retoken", "mort", "mort-top1"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_folding_on_the_way_is_folding(name, dtype, tmp_path):
    config = {"retoken": retoken.ReTokenConfig(), "mort": retoken.MoRTConfig(num_modulators=3, top_k=2)}
    top1 = retoken.MoRTConfig(num_modulators=3, top_k=1)
    model = retoken.attach(tiny_model("llama", dtype=dtype), config.get(name, top1)).eval()
    model.save_pretrained(tmp_path / "model")
    made = write_artifact(tmp_path / "model", tmp_path / "artifact", fold=True)
    retoken.fold(model).save_pretrained(tmp_path / "folded")
    retoken.pack(tmp_path / "folded", tmp_path / "rows")
    assert (tmp_path / "rows").read_bytes() == (tmp_path / "artifact" / "rows.safetensors").read_bytes()
    assert made.folded and made.rows == str(dtype).removeprefix("torch.")
    theirs = safetensors.torch.load_file(tmp_path / "folded" / "model.safetensors")
    ours = safetensors.torch.load_file(tmp_path / "artifact" / "model.safetensors")
    assert ours.keys() == {key for key in theirs if not key.endswith(".table")}
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_an_artefact_says_where_its_rows_are(artifact):
    folder = artifact(rows="int8", fold=True)
    written = json.loads((folder / "config.json").read_text())["retoken"]
    file = PackedFile(folder / "rows.safetensors")
    assert written["rows_file"] == "rows.safetensors" and written["rows_fingerprint"] == file.fingerprint
    assert written["modulator"]["folded"] is True and file.layout.rows == "int8"


def test_the_start_does_not_depend_on_the_rows(artifact, monkeypatch):
    """A sparse file of 100 GB with right records only where the fingerprint looks."""
    folder = artifact("retoken", rows="float32")
    big, width = 1 << 19, 1 << 14
    config = json.loads((folder / "config.json").read_text())
    layout = RecordLayout(vocab_size=big, layers=(0, 1, 2), rows_per_token=None, width=width, rows="float32")
    sampled = torch.linspace(0, big - 1, 64, dtype=torch.float64).long().unique()
    records = layout.encode({i: torch.ones(len(sampled), width) for i in layout.layers})
    digest = packed.fingerprint(layout, lambda ids: records)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _sparse(folder / "rows.safetensors", layout, digest, dict(zip(sampled.tolist(), records, strict=True)))
    assert (folder / "rows.safetensors").stat().st_size > 100e9
    config["retoken"]["rows_fingerprint"] = digest
    (folder / "config.json").write_text(json.dumps(config))
    loading = importlib.import_module("retoken.serving.load")
    monkeypatch.setattr(loading, "check_shapes", lambda *options: None)  # the backbone is a small one
    tracemalloc.start()
    model = retoken.load(folder)
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10
    assert model.retoken.source.placement.path == str(folder / "rows.safetensors")


def _sparse(path, layout, digest, records):
    metadata = {"format": packed.FORMAT, "format_version": "1", "fingerprint": digest}
    metadata["layout"] = json.dumps(layout.to_dict(), sort_keys=True)
    tensor = {
        "dtype": "U8",
        "shape": [layout.vocab_size, layout.record_bytes],
        "data_offsets": [0, layout.bytes],
    }
    text = json.dumps({"__metadata__": metadata, packed.FORMAT: tensor}).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    start = 8 + len(text)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(start + layout.bytes)
        for token, record in records.items():
            file.seek(start + token * layout.record_bytes)
            file.write(record.numpy().tobytes())


def test_a_copy_of_the_rows_can_be_served(build, artifact, tmp_path):
    folder, copy = artifact(), tmp_path / "near" / "rows"
    copy.parent.mkdir()
    for _ in range(2):
        model = retoken.load(folder, path=copy)
        assert model.retoken.source.placement.path == str(copy)
        assert torch.equal(logits(build("mort")), logits(model))
    assert copy.read_bytes() == (folder / "rows.safetensors").read_bytes()


def test_broken_artefacts_are_refused_by_name(artifact, build, tmp_path):
    folder = artifact()
    rows, config = folder / "rows.safetensors", folder / "config.json"
    data, written = rows.read_bytes(), config.read_text()
    for load in (retoken.load, AutoModelForCausalLM.from_pretrained):
        rows.write_bytes(data[:-64])
        with pytest.raises(CheckpointError, match=r"rows\.safetensors: .* truncated"):
            load(folder)
        rows.unlink()
        with pytest.raises(CheckpointError, match=r"rows\.safetensors: missing"):
            load(folder)
        build("mort", seed=2).save_pretrained(tmp_path / "other")
        retoken.pack(tmp_path / "other", rows)
        with pytest.raises(CheckpointError, match=r"rows\.safetensors: of another model: its fingerprint"):
            load(folder)
        config.write_text(written.replace('"rows.safetensors"', '"../rows.safetensors"'))
        with pytest.raises(CheckpointError, match="the name of a file beside it"):
            load(folder)
        config.write_text(written)
        rows.write_bytes(data)


def test_what_an_artefact_cannot_do_is_refused(artifact, saved, tmp_path):
    folder = artifact()
    with pytest.raises(ConfigError, match=r"rows is 'int8'; accepted .*: float32"):
        retoken.load(folder, rows="int8")
    with pytest.raises(ConfigError, match="verify is True"):
        retoken.load(folder, verify=True)
    logits(retoken.load(folder, verify=tmp_path / "model"))
    with pytest.raises(CheckpointError, match="packed already"):
        retoken.pack(folder, tmp_path / "again")
    with pytest.raises(CheckpointError, match="save the model before place"):
        retoken.load(folder).save_pretrained(tmp_path / "copy")


def test_a_model_without_rows_does_not_run(artifact):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(artifact()))
    with pytest.raises(AttachError, match=r"built without its tables.*retoken\.load"):
        model(input_ids=token_ids(1, 3))
    with pytest.raises(AttachError, match="AbsentTable"):
        retoken.place(model, "host")
    with pytest.raises(AttachError, match="absent tables have"):
        model.resize_token_embeddings(VOCAB + 5)


def test_nothing_is_left_of_an_artefact_that_failed(saved, tmp_path):
    folder = saved(folded=True)
    with pytest.raises(ConfigError, match="is folded already"):
        write_artifact(folder, tmp_path / "artifact", fold=True)
    with pytest.raises(ConfigError, match="rows is 'int3'"):
        write_artifact(folder, tmp_path / "artifact", rows="int3")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
