"""The router compiled for GPUs that are not there: its part of `retoken.ops.triton.aot`. Imports Triton."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from retoken.ops.triton import route_kernels
from retoken.ops.triton.route import route_sizes

CASES = ((768, 4, 2), (1536, 4, 2), (1536, 5, 3), (4096, 8, 2), (1536, 64, 8))
"""(D, E, K)"""
_TYPES = {"logits": "*fp32", "weights": "*fp32", "chosen": "*i64", "hidden": "*bf16", "router": "*bf16"}


@dataclass(frozen=True)
class CompiledRoute:
    """What the router became for one architecture and shape: bfloat16 states and router."""

    arch: int
    width: int
    modulators: int
    top_k: int
    num_warps: int
    registers: int
    spill_bytes: int
    vectorised: bool
    """Whether all loads are of 16 bytes."""
    bound: int
    """Bytes a token of its state and its results, each once; the router is read by all, mostly from cache."""


def compile_route(arch: int, width: int, modulators: int, top_k: int) -> CompiledRoute:
    """Compile it and read the result."""
    from retoken.ops.triton import aot

    sizes, kernel = route_sizes(width, modulators, top_k), route_kernels.route_forward
    constants = {name: sizes[name] for name in kernel.arg_names if name in sizes}
    signature = {name: _TYPES.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(len(_TYPES))}
    source = ASTSource(kernel, signature, constants, aligned)
    binary = triton.compile(source, GPUTarget("cuda", arch, 32), aot._options(sizes))
    registers, spilled = aot._assembled(binary.asm["ptx"], arch)
    loads = [int(n or 1) * int(bits) for n, bits in aot._LOAD.findall(binary.asm["ptx"])]
    return CompiledRoute(
        arch=arch,
        width=width,
        modulators=modulators,
        top_k=top_k,
        num_warps=sizes["num_warps"],
        registers=registers,
        spill_bytes=spilled,
        vectorised=all(bits == 128 for bits in loads),
        bound=2 * width + 4 * modulators + 12 * top_k,
    )


def compile_routes(archs: Iterable[int]) -> list[CompiledRoute]:
    """Every case for every architecture."""
    return [compile_route(arch, *case) for arch in archs for case in CASES]


def report_routes(cases: Iterable[CompiledRoute]) -> str:
    """The cases as a table in Markdown."""
    names = "kernel|arch|D|E|K|warps|registers|spilled|16-byte loads|bound, bytes a token".split("|")
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for case in cases:
        cells = ("`route_forward`", f"sm_{case.arch}", case.width, case.modulators, case.top_k)
        cells += (case.num_warps, case.registers, case.spill_bytes)
        cells += ("all" if case.vectorised else "not all", case.bound)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)
