"""The gather compiled for GPUs that are not there: its part of `retoken.ops.triton.aot`. Imports Triton."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from retoken.ops.triton import gather_kernels
from retoken.ops.triton.gather import ALIGN, Parts, gather_sizes

LAYERS = 28
"""Of the report's records."""
RECORD_ALIGN = 64
CASES = ((768, 1, 2), (1536, 1, 2), (1536, 5, 2), (1536, 1, 1), (1536, 5, 1))
"""(D, rows a token, bytes a number): bfloat16, and int8 or float8 with scales."""


@dataclass(frozen=True)
class CompiledGather:
    """What the gather became for one architecture and layout."""

    arch: int
    width: int
    rows: int
    item: int
    """Bytes of a number; with 1 there are scales."""
    num_warps: int
    registers: int
    spill_bytes: int
    vectorised: bool
    """Whether all loads and stores of rows are of 16 bytes."""
    wide_addresses: bool
    moved: int
    """Bytes loaded and stored for a token in a layer: its part, scales, and the id once a program."""
    bound: int
    """Bytes of its rows and scales, once out of host memory and once into the device's."""


def compile_gather(arch: int, width: int, rows: int, item: int) -> CompiledGather:
    """Compile it for records of 28 layers and read the result."""
    from retoken.ops.triton import aot

    size = rows * width * item
    part, scale = -(-size // ALIGN) * ALIGN, 4 * rows if item == 1 else 0
    record = -(-(LAYERS * (part + scale) + 4) // RECORD_ALIGN) * RECORD_ALIGN
    room = -(-(part + scale) // ALIGN) * ALIGN
    sizes = gather_sizes(record, room, Parts(part, LAYERS * part, scale))
    source, warps = _source(sizes), sizes["num_warps"]
    binary = triton.compile(source, GPUTarget("cuda", arch, 32), {"num_warps": warps})
    registers, spilled = aot._assembled(binary.asm["ptx"], arch)
    chunks = -(-sizes["PART"] // sizes["BLOCK"])
    wide = -(-sizes["BLOCK"] // (4 * 32 * warps))
    found = [binary.asm["ptx"].count(f"{kind}.global.v4") for kind in ("ld", "st")]
    return CompiledGather(
        arch=arch,
        width=width,
        rows=rows,
        item=item,
        num_warps=warps,
        registers=registers,
        spill_bytes=spilled,
        vectorised=found == [wide, wide],
        wide_addresses=all("i64" in kind for kind in aot._PRODUCT.findall(_addresses(binary.asm["ttir"]))),
        moved=2 * (part + scale) + 8 * chunks,
        bound=2 * (size + scale),
    )


def _source(sizes: dict[str, int]) -> ASTSource:
    kernel = gather_kernels.gather_parts
    types = {"out": "*i32", "records": "*i32", "ids": "*i64", "first": "i32", "capacity": "i32"}
    constants = {name: sizes[name] for name in kernel.arg_names if name in sizes}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    return ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in range(3)})


def _addresses(ttir: str) -> str:
    """Without the product of the chunk and its size, which lies within a part."""
    return "\n".join(line for line in ttir.splitlines() if "%chunk" not in line)


def compile_gathers(archs: Iterable[int]) -> list[CompiledGather]:
    """Every case for every architecture."""
    return [compile_gather(arch, *case) for arch in archs for case in CASES]


def report_gathers(cases: Iterable[CompiledGather]) -> str:
    """The cases as a table in Markdown."""
    heads = "kernel|arch|D|rows|bytes a number|warps|registers|spilled|16-byte loads and stores"
    names = [*heads.split("|"), "bytes a token and layer", "bound"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for case in cases:
        cells = ("`gather_parts`", f"sm_{case.arch}", case.width, case.rows, case.item, case.num_warps)
        cells += (case.registers, case.spill_bytes, "all" if case.vectorised else "not all")
        lines.append("| " + " | ".join(map(str, (*cells, case.moved, case.bound))) + " |")
    return "\n".join(lines)
