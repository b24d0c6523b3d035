"""Rows as views of the records they lie in."""

import pytest
import torch

import retoken
from retoken.errors import AttachError
from retoken.nn import Rows
from retoken.ops.quantize import STORED
from retoken.serving.artifact import write_artifact
from retoken.serving.layout import RecordLayout
from retoken.serving.stored import StoredRows
from retoken.testing import VOCAB, assert_close, token_ids

COUNTS = torch.arange(VOCAB).flip(0) + 1


def _records(rows, rows_per_token):
    layout = RecordLayout(vocab_size=9, layers=(0, 2), rows_per_token=rows_per_token, width=37, rows=rows)
    shape = (9, 37) if rows_per_token is None else (9, rows_per_token, 37)
    generator = torch.Generator().manual_seed(0)
    return layout, layout.encode({layer: torch.randn(shape, generator=generator) for layer in layout.layers})


@pytest.mark.parametrize("rows_per_token", [None, 3])
@pytest.mark.parametrize("rows", STORED)
def test_views_are_what_records_decode_to(rows, rows_per_token):
    layout, records = _records(rows, rows_per_token)
    positions = torch.tensor([[8, 0], [3, 3]])
    for layer in layout.layers:
        stored = StoredRows(positions, *layout.views(records, layer))
        assert stored.rows.untyped_storage().data_ptr() == records.untyped_storage().data_ptr()
        wanted = Rows(positions, layout.decode(records, layer, torch.float32))
        assert torch.equal(stored.lookup().float(), wanted.lookup())
        if rows_per_token is not None:
            chosen, weights = torch.randint(3, (2, 2, 2)), torch.rand(2, 2, 2)
            found = stored.mix(chosen, weights)
            torch.testing.assert_close(found, wanted.mix(chosen, weights), rtol=1e-6, atol=1e-6)
        assert stored.near() is stored.resident() is stored.resident_for(positions) is None


@pytest.mark.parametrize("where", ["host", "disk"])
def test_a_tier_gives_views_of_its_records(build, kind, where, tmp_path):
    model = build(kind)
    tables = {layer: module.table.weight.detach() for layer, module in retoken.modulators(model).items()}
    retoken.place(model, where, path=tmp_path / "rows" if where == "disk" else None)
    for layer, table in tables.items():
        rows, scales = model.retoken.source.views(layer)
        assert torch.equal(rows, table) and scales is None


@pytest.mark.parametrize(
    "options",
    [{"budget": {"host": 4000}, "counts": COUNTS}, {"prefetch": "chosen"}, {"verify": True}],
    ids=["cascade", "chosen", "verify"],
)
def test_what_is_in_pieces_or_asked_for_later_has_none(build, options, tmp_path):
    model = build("mort")
    retoken.place(model, "disk", path=tmp_path / "rows", **options)
    assert model.retoken.source.views(0) is None


def test_pruned_rows_have_none(build, tmp_path):
    build("retoken").save_pretrained(tmp_path / "whole")
    kept = torch.arange(VOCAB) % 3 != 1
    write_artifact(tmp_path / "whole", tmp_path / "pruned", kept=kept)
    model = retoken.load(tmp_path / "pruned", tables="disk")
    assert model.retoken.source.views(0) is None


def test_a_compiler_reads_them_itself(build, kind):
    """Where records are in memory: one graph, without a copy of rows."""
    model, ids = build(kind), token_ids()
    with torch.inference_mode():
        wanted = model(input_ids=ids, use_cache=False).logits
        retoken.place(model, "host")
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        assert_close("logits", wanted, compiled(input_ids=ids, use_cache=False).logits)


@pytest.mark.parametrize("kind", ["retoken", "mort"])
def test_a_compiler_that_cannot_breaks_its_graph(build, kind, tmp_path):
    """On a disk each record is asked for and checked."""
    model, ids = build(kind), token_ids()
    with torch.inference_mode():
        wanted = model(input_ids=ids, use_cache=False).logits
        retoken.place(model, "disk", path=tmp_path / "rows")
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager")
        assert_close("logits", wanted, compiled(input_ids=ids, use_cache=False).logits)


def test_a_compiler_gets_no_gradients_either(build):
    model, ids = build("retoken"), token_ids()
    retoken.place(model, "host")
    torch._dynamo.reset()
    loss = torch.compile(model, backend="aot_eager")(input_ids=ids, labels=ids, use_cache=False).loss
    with pytest.raises(AttachError, match="give no gradients"):
        loss.backward()
