"""Placed models compute what resident ones compute, bit for bit, wherever their rows live."""

import copy
import gc
import weakref

import pytest
import torch

import retoken
from retoken.errors import AttachError, CheckpointError, ConfigError, DataError
from retoken.ops.quantize import dequantize, quantize
from retoken.serving import RecordLayout
from retoken.testing import VOCAB, token_ids

COUNTS = torch.randperm(VOCAB, generator=torch.Generator().manual_seed(5))
PLACES = ("device", "host", "disk", "cascade")


def placed(model, where, tmp_path, rows=None, **options):
    """Place it; a cascade keeps 20 tokens on the device and 50 in host memory."""
    path = tmp_path / "rows.safetensors"
    if where == "cascade":
        record = record_bytes(model, rows)
        budget = {"device": 20 * record, "host": 50 * record}
        return retoken.place(model, "disk", path=path, rows=rows, budget=budget, counts=COUNTS, **options)
    return retoken.place(model, where, path=path if where == "disk" else None, rows=rows, **options)


def record_bytes(model, rows):
    parts = retoken.modulators(model)
    shape = parts[0].table.weight.shape
    kind = rows or str(model.dtype).removeprefix("torch.")
    owns = shape[1] if len(shape) == 3 else None
    layout = RecordLayout(
        vocab_size=VOCAB, layers=tuple(parts), rows_per_token=owns, width=shape[-1], rows=kind
    )
    return layout.record_bytes


def with_rounded_rows(model, rows):
    """The resident model whose rows went through a row type and back."""
    for module in retoken.modulators(model).values():
        weight = module.table.weight.data
        weight.copy_(dequantize(*quantize(weight, rows), weight.dtype))
    return model


@torch.no_grad()
def logits(model, ids=None):
    return model(input_ids=token_ids(3, 11) if ids is None else ids).logits


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_outputs_are_the_resident_models(build, kind, where, dtype, tmp_path):
    model = build(kind, dtype)
    wanted = logits(model)
    placed(model, where, tmp_path)
    assert torch.equal(wanted, logits(model))


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("rows", ["bfloat16", "int8", "float8_e4m3"])
@pytest.mark.parametrize("name", ["retoken", "mort"])
def test_outputs_are_those_of_rows_rounded_alike(build, name, where, rows, tmp_path):
    plain = logits(build(name))
    wanted = logits(with_rounded_rows(build(name), rows))
    model = build(name)
    placed(model, where, tmp_path, rows)
    assert torch.equal(wanted, logits(model))
    assert not torch.equal(plain, wanted)


@pytest.mark.parametrize("where", PLACES)
def test_folded_models_are_placed_too(build, kind, where, tmp_path):
    model = build(kind, folded=True)
    wanted = logits(model)
    placed(model, where, tmp_path)
    assert torch.equal(wanted, logits(model))


@pytest.mark.parametrize("where", ["host", "disk", "cascade"])
@pytest.mark.parametrize("batch", [1, 3])
def test_generated_text_is_the_resident_models(build, kind, where, batch, tmp_path):
    resident, model = build(kind), build(kind)
    placed(model, where, tmp_path)
    for seed in range(4):
        ids = token_ids(batch, 9, seed=seed)
        mask = torch.ones_like(ids)
        ids[0, :4], mask[0, :4] = 0, 0
        options = {"max_new_tokens": 7, "do_sample": False, "attention_mask": mask, "output_logits": True}
        options["return_dict_in_generate"] = True
        wanted, found = resident.generate(ids, **options), model.generate(ids, **options)
        assert torch.equal(wanted.sequences, found.sequences)
        assert torch.equal(torch.stack(wanted.logits), torch.stack(found.logits))


def test_lookup_works_through_the_source(build, kind, tmp_path):
    model, ids = build(kind), token_ids(2, 5)
    wanted = {i: m.lookup(ids).detach() for i, m in retoken.modulators(model).items()}
    placed(model, "disk", tmp_path)
    for layer, module in retoken.modulators(model).items():
        assert torch.equal(wanted[layer], module.lookup(ids))


@pytest.mark.parametrize("where", ["host", "disk"])
def test_the_tables_are_released(build, where, tmp_path):
    model = build("mort")
    storages = [weakref.ref(m.table.weight) for m in retoken.modulators(model).values()]
    placed(model, where, tmp_path)
    gc.collect()
    assert all(ref() is None for ref in storages)
    assert not any("table" in name for name, _ in model.named_parameters())


def test_the_most_frequent_tokens_sit_highest(build, tmp_path):
    model = build()
    placement = placed(model, "cascade", tmp_path)
    homes = model.retoken.source.homes
    order = COUNTS.argsort(descending=True)
    assert homes.names == ("device", "host", "disk")
    assert set(order[:20].tolist()) == set((homes.tier_V == 0).nonzero().flatten().tolist())
    assert set(order[20:70].tolist()) == set((homes.tier_V == 1).nonzero().flatten().tolist())
    assert [use.tokens for use in placement.tiers] == [20, 50, VOCAB - 70]
    assert placement.tiers[0].bytes == 20 * placement.record_bytes
    assert model.retoken.source.placement is placement


def test_a_placement_can_be_read(build, tmp_path):
    text = str(placed(build(), "cascade", tmp_path, "int8"))
    assert "int8" in text and "rows.safetensors" in text
    assert [line.split()[:2] for line in text.splitlines()[1:4]] == [
        ["device", "20"],
        ["host", "50"],
        ["disk", str(VOCAB - 70)],
    ]


def test_counts_come_from_a_store_too(build, tmp_path):
    import numpy as np

    np.save(tmp_path / "token_counts.npy", np.stack([COUNTS.numpy(), COUNTS.numpy()[::-1]]))
    model = build()
    budget = {"host": 20 * record_bytes(model, None)}
    retoken.place(model, "disk", path=tmp_path / "rows", budget=budget, counts=tmp_path)
    top = COUNTS.argsort(descending=True)[:20].tolist()
    assert set((model.retoken.source.homes.tier_V == 0).nonzero().flatten().tolist()) == set(top)


def test_what_does_not_fit_is_refused_with_the_numbers(build, tmp_path):
    model = build()
    size = record_bytes(model, None)
    budget = {"device": 20 * size, "host": 50 * size}
    with pytest.raises(
        ConfigError, match=rf"host is {50 * size} bytes; needed for 111 .* {111 * size} bytes"
    ):
        retoken.place(model, "host", budget=budget, counts=COUNTS)
    with pytest.raises(ConfigError, match="device is 5 bytes; needed for 131 records: 50304 bytes"):
        retoken.place(model, budget={"device": 5})
    path = tmp_path / "rows"
    with pytest.raises(ConfigError, match="disk is 5 bytes"):
        retoken.place(model, "disk", path=path, budget={"disk": 5})
    assert not path.exists()
    assert model.retoken.source is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tables": "moon"}, "tables is 'moon'"),
        ({"tables": "disk"}, "path is None"),
        ({"tables": "host", "rows": "int3"}, "rows is 'int3'"),
        ({"tables": "host", "budget": {"disk": 5}}, "budget is"),
        ({"tables": "host", "budget": {"device": -5}}, "budget of device is -5"),
        ({"tables": "host", "budget": {"device": 10**6}}, "counts is None"),
        ({"tables": "host", "counts": torch.ones(132)}, r"counts given have shape \[132\]"),
        ({"tables": "host", "counts": "nowhere.npy"}, "nowhere.npy cannot be read"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(sorted(value)),
)
def test_what_is_not_understood_is_refused(build, options, message):
    with pytest.raises(
        DataError if "have shape" in message or ".npy" in message else ConfigError, match=message
    ):
        retoken.place(build(), **options)


def test_no_gradient_comes_through_placed_rows(build, kind, tmp_path):
    model = build(kind)
    placed(model, "host", tmp_path)
    ids = token_ids()
    with pytest.raises(AttachError, match="give no gradients"):
        model(input_ids=ids).logits.sum().backward()


def test_a_placed_model_is_not_saved_without_its_tables(build, tmp_path):
    model = build()
    placed(model, "host", tmp_path)
    with pytest.raises(CheckpointError, match="save the model before place"):
        model.save_pretrained(tmp_path / "out")


def test_placing_twice_is_refused(build, tmp_path):
    model = build()
    placed(model, "host", tmp_path)
    with pytest.raises(AttachError, match="once"):
        placed(model, "host", tmp_path)


def test_a_copy_and_a_detached_model_work(build, tmp_path):
    model = build()
    placed(model, "disk", tmp_path)
    assert torch.equal(logits(model), logits(copy.deepcopy(model)))
    assert not hasattr(retoken.detach(model), "retoken")
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("where", PLACES)
def test_verify_accepts_what_was_placed(build, where, tmp_path):
    model = build("mort")
    model.save_pretrained(tmp_path / "model")
    wanted = logits(with_rounded_rows(build("mort"), "int8"))
    placed(model, where, tmp_path, "int8", verify=tmp_path / "model")
    assert torch.equal(wanted, logits(model))


@pytest.mark.parametrize("where", ["host", "cascade"])
def test_verify_tells_a_changed_row(build, where, tmp_path):
    model = build()
    placed(model, where, tmp_path, verify=True)
    ids = torch.arange(60)[None]
    logits(model, ids)
    tier = model.retoken.source._tiers[model.retoken.source.homes.names.index("host")]
    tier.records[:, 3] ^= 1
    with pytest.raises(CheckpointError, match="differ from those they were made of"):
        logits(model, ids)


@pytest.mark.parametrize("where", ["device", "host", "mixed"])
@pytest.mark.parametrize("rows", ["float32", "int8"])
def test_rows_in_memory_can_be_replaced(build, kind, where, rows, tmp_path):
    model, other = build(kind, torch.float32), build(kind, torch.float32)
    with torch.no_grad():
        for module in retoken.modulators(other).values():
            module.table.weight.copy_(module.table.weight.flip(0))
    kept = {layer: module.table.weight.clone() for layer, module in retoken.modulators(other).items()}
    if where == "mixed":
        budget = {"device": 20 * record_bytes(model, rows)}
        retoken.place(model, "host", rows=rows, budget=budget, counts=COUNTS)
    else:
        retoken.place(model, where, rows=rows)
    before = logits(model)
    for layer, weight in kept.items():
        model.retoken.source.replace(layer, weight)
    wanted = logits(with_rounded_rows(other, rows))
    assert torch.equal(logits(model), wanted) and not torch.equal(before, wanted)


def test_rows_in_a_file_or_of_another_shape_are_not_replaced(build, kind, tmp_path):
    model = build(kind, torch.float32)
    weight = retoken.modulators(model)[0].table.weight.clone()
    on_disk, on_host = copy.deepcopy(model), copy.deepcopy(model)
    retoken.place(on_disk, "disk", path=tmp_path / "rows.safetensors")
    with pytest.raises(CheckpointError, match=r'of layer 0 are read from a file.*accepted: tables="host"'):
        on_disk.retoken.source.replace(0, weight)
    retoken.place(on_host, "host")
    with pytest.raises(CheckpointError, match=r"rows of layer 0 are \[.*accepted: \["):
        on_host.retoken.source.replace(0, weight[1:])
