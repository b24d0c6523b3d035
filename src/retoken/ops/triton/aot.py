"""Compiles every kernel for GPUs that are not there, and says what came out: registers, spills, loads, bytes.

`python -m retoken.ops.triton.aot` prints the table of docs/kernels.md. Imports Triton.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from retoken.ops.triton import gate_kernels, launch, mix_kernels

ARCHS = (80, 90)
"""sm_80 (A100) and sm_90 (H100)."""
SHAPES = ((768, 2), (768, 3), (1536, 2), (1536, 3))
"""(D, K) of the report."""
TOKENS = 8192
"""Tokens a launch, for the share of what a backward program moves once for several tokens."""
KERNELS = (
    gate_kernels.gate_forward,
    gate_kernels.folded_forward,
    gate_kernels.gate_backward,
    mix_kernels.mix_forward,
    mix_kernels.folded_add_forward,
    mix_kernels.mix_backward,
)
_BYTES = {"bf16": 2, "f32": 4, "i64": 8}
_TYPES = {
    **dict.fromkeys(("out", "increment", "table", "grad_out", "grad_increment"), "*bf16"),
    **dict.fromkeys(("ids", "chosen"), "*i64"),
    **dict.fromkeys(("scale", "weights", "grad_rows", "grad_weights", "grad_scale"), "*fp32"),
    **dict.fromkeys(("stride_v", "stride_e", "tokens", "per_program"), "i32"),
    **dict.fromkeys(("gain", "eps"), "fp32"),
}
_ACCESS = re.compile(r"^( *)(?:%\S+ = )?tt\.(load|store) .*: (?:tensor<(\S+)x)?!tt\.ptr<(\w+)>")
_PRODUCT = re.compile(r"arith\.muli .*: (\S+)(?: loc|$)", re.MULTILINE)
_LOAD = re.compile(r"ld\.global\S*?\.(?:v(\d)\.)?[bfsu](\d+)\b")


@dataclass(frozen=True)
class Compiled:
    """What one kernel became for one architecture and shape: bfloat16 increment and table, float32 scale."""

    kernel: str
    arch: int
    width: int
    top_k: int | None
    """K; None for the gate."""
    num_warps: int
    registers: int
    """Of each thread."""
    spill_bytes: int
    """Stores and loads of spilled registers, per thread."""
    shared_bytes: int
    loads: dict[int, int]
    """Load instructions of a thread by their bytes, those in a loop once."""
    vectorised: bool
    """Whether all loads of rows, increments, gradients and scale are of 16 bytes."""
    wide_addresses: bool
    """Whether all integer products, which are those of addresses, are of 64 bits."""
    moved: float
    """Bytes loaded and stored per token, with the scale, ids, choices, weights and partial sums."""
    bound: int
    """Bytes per token of the rows, the increment and the result, or their gradients, each once."""


def compile_kernel(kernel: Any, arch: int, width: int, top_k: int) -> Compiled:
    """Compile one of `KERNELS` for sm_`arch` and read the result.

    Raises:
        RuntimeError: Triton interprets (TRITON_INTERPRET=1), so there is nothing to compile.
    """
    if not isinstance(kernel, JITFunction):
        raise RuntimeError("TRITON_INTERPRET is set: Triton interprets the kernels and compiles none")
    mixes = "K" in kernel.arg_names
    sizes = launch.sizes(width, top_k if mixes else None)
    binary = triton.compile(_source(kernel, sizes), GPUTarget("cuda", arch, 32), _options(sizes))
    registers, spill_bytes = _assembled(binary.asm["ptx"], arch)
    accesses = list(_accesses(binary.asm["ttir"], sizes))
    loads = Counter(int(n or 1) * int(bits) // 8 for n, bits in _LOAD.findall(binary.asm["ptx"]))
    return Compiled(
        kernel=kernel.__name__,
        arch=arch,
        width=width,
        top_k=top_k if mixes else None,
        num_warps=sizes["num_warps"],
        registers=registers,
        spill_bytes=spill_bytes,
        shared_bytes=binary.metadata.shared,
        loads=dict(sorted(loads.items())),
        vectorised=_vectorised(loads, accesses, sizes),
        wide_addresses=all("i64" in kind for kind in _PRODUCT.findall(binary.asm["ttir"])),
        moved=sum(access.bytes_per_token for access in accesses),
        bound=_bound(kernel.__name__, width, top_k),
    )


def compile_all(shapes: Iterable[tuple[int, int]] = SHAPES, archs: Iterable[int] = ARCHS) -> list[Compiled]:
    """Every kernel for every (D, K) and architecture; the gate once for each D."""
    found = {}
    for arch in archs:
        for width, top_k in shapes:
            for kernel in KERNELS:
                case = compile_kernel(kernel, arch, width, top_k)
                found[case.kernel, arch, width, case.top_k] = case
    return list(found.values())


@dataclass(frozen=True)
class _Access:
    """One load or store of a kernel."""

    load: bool
    padded_bytes: int
    """With the elements past D and K, which are masked."""
    bytes_per_token: float
    """Without them."""
    wide: bool
    """Whether it covers a row."""


def _source(kernel: Any, sizes: dict[str, int]) -> ASTSource:
    """The kernel with the report's types; pointers and strides are multiples of 16, as torch allocates."""
    constants = {name: sizes[name] for name in kernel.arg_names if name in sizes}
    signature = {name: "constexpr" if name in constants else _TYPES[name] for name in kernel.arg_names}
    aligned = (i for i, name in enumerate(signature) if signature[name][0] == "*" or "stride" in name)
    return ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})


def _options(sizes: dict[str, int]) -> dict[str, int]:
    """Triton's own options among a launch's."""
    return {name: sizes[name] for name in ("num_warps", "enable_fp_fusion")}


def _assembled(ptx: str, arch: int) -> tuple[int, int]:
    """Registers and spilled bytes, from the ptxas that Triton brings, called as Triton calls it."""
    target = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        words = [get_ptxas(arch).path, "-v", "--regAllocOptLevel=2", f"--gpu-name={target}"]
        words += [str(source), "-o", str(source.with_suffix(".cubin"))]
        said = subprocess.run(words, check=True, capture_output=True, text=True).stderr
    spilled = re.findall(r"(\d+) bytes spill", said)
    (registers,) = re.findall(r"Used (\d+) registers", said)
    return int(registers), sum(map(int, spilled))


def _accesses(ttir: str, sizes: dict[str, int]) -> Iterator[_Access]:
    """Loads and stores in Triton's own representation, where each stands once."""
    looped = "scf.for" in ttir
    real = {sizes["BLOCK_D"]: sizes["D"], sizes.get("BLOCK_K", 0): sizes.get("K", 0)}
    for line in ttir.splitlines():
        if found := _ACCESS.match(line):
            indent, kind, shape, dtype = found.groups()
            dims = [int(size) for size in shape.split("x")] if shape else []
            padded, kept = _BYTES[dtype], _BYTES[dtype]
            for size in dims:
                padded, kept = padded * size, kept * real[size]
            shared = launch.tokens_per_program(TOKENS) if looped and len(indent) == 4 else 1
            yield _Access(kind == "load", padded, kept / shared, sizes["BLOCK_D"] in dims)


def _vectorised(loads: Counter[int], accesses: list[_Access], sizes: dict[str, int]) -> bool:
    """Whether 16-byte loads cover all that is wide, and no more narrow ones are left than numbers a token."""
    wide = sum(access.padded_bytes for access in accesses if access.load and access.wide)
    numbers = 2 + 3 * sizes.get("BLOCK_K", 0)
    narrow = sum(count for size, count in loads.items() if size < 16)
    return loads[16] * 16 * 32 * sizes["num_warps"] >= wide and narrow <= numbers


def _bound(kernel: str, width: int, top_k: int) -> int:
    """Bytes per token no kernel can do without: bfloat16, float32 for gradients of rows and weights."""
    return {
        "gate_forward": 6 * width,
        "folded_forward": 6 * width,
        "folded_add_forward": 6 * width,
        "gate_backward": 8 * width + 4 * width,
        "mix_forward": (2 * top_k + 4) * width,
        "mix_backward": (2 * top_k + 2) * width + 4 * top_k * (width + 1),
    }[kernel]


def report(cases: Iterable[Compiled]) -> str:
    """The cases as a table in Markdown."""
    heads = "kernel|arch|D|K|warps|registers|spilled|shared|16-byte loads|bytes a token|bound".split("|")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for case in cases:
        cells = (f"`{case.kernel}`", f"sm_{case.arch}", case.width, case.top_k or "", case.num_warps)
        cells += (
            case.registers,
            case.spill_bytes,
            case.shared_bytes,
            "all" if case.vectorised else "not all",
        )
        cells += (f"{case.moved:.0f}", f"{case.bound}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    from retoken.ops.triton.aot_gather import compile_gathers, report_gathers
    from retoken.ops.triton.aot_route import compile_routes, report_routes

    print(report(compile_all()))
    print()
    print(report_routes(compile_routes(ARCHS)))
    print()
    print(report_gathers(compile_gathers(ARCHS)))
