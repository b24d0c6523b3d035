"""Rows in fewer bytes: the documented error bounds, the naive twins, zero rows."""

import pytest
import torch

from retoken.ops import naive
from retoken.ops.quantize import STORED, dequantize, quantize


def rows(count=13, width=37):
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(-6, 4, count).unsqueeze(-1)
    return torch.randn(count, width, generator=generator) * spread


def back(u, row_type):
    return dequantize(*quantize(u, row_type), torch.float32)


def test_float32_rows_are_untouched():
    assert torch.equal(rows(), back(rows(), "float32"))


def test_bfloat16_rows_are_rounded_once():
    assert torch.equal(rows().bfloat16().float(), back(rows(), "bfloat16"))
    assert ((back(rows(), "bfloat16") - rows()).abs() <= rows().abs() / 256).all()


@pytest.mark.parametrize("row_type", ["int8", "float8_e4m3"])
def test_a_row_is_the_naive_twins(row_type):
    twin = {"int8": naive.quantized_int8, "float8_e4m3": naive.quantized_float8}[row_type]
    assert torch.equal(torch.stack([twin(u) for u in rows()]), back(rows(), row_type))


def test_int8_stays_within_half_a_step():
    u = rows()
    allowed = u.abs().amax(-1, keepdim=True) / 254 * (1 + 1e-4)
    assert ((back(u, "int8") - u).abs() <= allowed).all()
    assert not ((back(u, "int8") - u).abs() <= allowed / 2).all()


def test_float8_stays_within_its_bound():
    u = rows()
    smallest = u.abs().amax(-1, keepdim=True) / 458752
    allowed = torch.maximum(u.abs() / 16, smallest) * (1 + 1e-4)
    assert ((back(u, "float8_e4m3") - u).abs() <= allowed).all()
    assert not ((back(u, "float8_e4m3") - u).abs() <= allowed / 2).all()


@pytest.mark.parametrize("row_type", STORED)
def test_zero_rows_stay_zero(row_type):
    assert torch.equal(back(torch.zeros(3, 5), row_type), torch.zeros(3, 5))


@pytest.mark.parametrize("row_type", ["int8", "float8_e4m3"])
def test_every_row_has_its_own_scale(row_type):
    scale = quantize(torch.tensor([[1.0, -2.0], [0.0, 8.0]]), row_type)[1]
    largest = {"int8": 127, "float8_e4m3": 448}[row_type]
    assert torch.equal(scale, torch.tensor([2.0, 8.0]) / largest)
