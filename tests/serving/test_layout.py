"""Records: what goes in comes out, where it says, for every row type."""

import pytest
import torch

from retoken.ops.quantize import STORED, dequantize, quantize
from retoken.serving.layout import RecordLayout


def layout(rows, rows_per_token=3, width=37):
    return RecordLayout(vocab_size=7, layers=(0, 2), rows_per_token=rows_per_token, width=width, rows=rows)


def some_rows(rows_per_token, width=37):
    generator = torch.Generator().manual_seed(0)
    shape = (7, width) if rows_per_token is None else (7, rows_per_token, width)
    return {layer: torch.randn(shape, generator=generator) for layer in (0, 2)}


@pytest.mark.parametrize("rows_per_token", [None, 3])
@pytest.mark.parametrize("rows", STORED)
def test_rows_come_out_as_they_were_quantised(rows, rows_per_token):
    what, tables = layout(rows, rows_per_token), some_rows(rows_per_token)
    records = what.encode(tables)
    for layer, table in tables.items():
        wanted = dequantize(*quantize(table, rows), torch.float32)
        assert torch.equal(wanted, what.decode(records, layer, torch.float32))


@pytest.mark.parametrize("rows", STORED)
def test_records_are_aligned_and_hold_no_more_than_they_must(rows):
    what = layout(rows)
    needed = 2 * 3 * (37 * STORED[rows].itemsize + (4 if rows in ("int8", "float8_e4m3") else 0)) + 4
    assert what.record_bytes % 64 == 0
    assert needed <= what.record_bytes < needed + 2 * 16 + 64


@pytest.mark.parametrize("byte", [0, 100, -5, -1])
def test_a_changed_byte_is_told(byte):
    what = layout("int8")
    records = what.encode(some_rows(3))
    records[3, byte] ^= 1
    wrong = what.check_of(records) != records.view(torch.int32)[:, -1]
    assert wrong.nonzero().flatten().tolist() == [3]


def test_a_hole_in_the_file_is_no_record():
    what = layout("float32")
    hole = torch.zeros(1, what.record_bytes, dtype=torch.uint8)
    assert what.check_of(hole) != hole.view(torch.int32)[:, -1]


def test_a_layout_survives_json():
    what = layout("int8")
    assert RecordLayout.from_dict(what.to_dict()) == what
