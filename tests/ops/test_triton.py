"""The Triton kernels without a GPU: interpreted in a process of their own, compiled, and their refusals."""

import re
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from retoken.ops.triton import (  # noqa: E402
    aot,
    aot_route,
    folded_gate_rows,
    folded_row_into,
    gate_rows,
    launch,
    mix_rows_into,
    route_tokens,
)

ROOT = Path(__file__).parents[2]
REGISTERS = {"gate_forward": 64, "folded_forward": 40, "folded_add_forward": 40, "mix_forward": 64}
"""At most; 128 for the others, so that an SM's 65536 hold two programs of eight warps."""


def test_interpreted_kernels_equal_the_naive_equations(python):
    """tests/ops/kernels_run.py and route_run.py, every one of their tests."""
    files = ["tests/ops/kernels_run.py", "tests/ops/route_run.py"]
    ran = python("-m", "pytest", "--noconftest", "-p", "no:cacheprovider", *files, TRITON_INTERPRET="1")
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    last = ran.stdout.strip().splitlines()[-1]
    passed = re.match(r"(\d+) passed", last)
    assert passed and int(passed[1]) > 155, last


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Every kernel for both architectures, compiled anew."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield aot.compile_all()


def test_every_kernel_compiles_for_both_architectures(compiled):
    assert {(case.kernel, case.arch) for case in compiled} == {
        (kernel.__name__, arch) for kernel in aot.KERNELS for arch in (80, 90)
    }
    assert len(compiled) == 32


def test_nothing_spills_and_registers_leave_room(compiled):
    for case in compiled:
        assert case.spill_bytes == 0, case
        assert case.registers <= REGISTERS.get(case.kernel, 128), case


def test_rows_are_loaded_16_bytes_at_a_time_and_addressed_with_64_bits(compiled):
    for case in compiled:
        assert case.vectorised, case
        assert case.wide_addresses, case


def test_bytes_are_the_bound_the_scale_and_a_few_numbers(compiled):
    """Forward, each program loads the scale; backward, its loading and its part of the sum serve 8 tokens."""
    for case in compiled:
        loads = {"folded_forward": 0, "folded_add_forward": 0, "gate_forward": 4, "mix_forward": 4}
        scale = loads.get(case.kernel, 1) * case.width
        numbers = 8 + 16 * (case.top_k or (case.kernel == "folded_add_forward"))
        assert 0 <= case.moved - case.bound - scale <= numbers, case


def test_rows_that_are_not_aligned_are_noticed():
    assert aot.compile_kernel(aot.KERNELS[0], 80, 1000, 2).vectorised
    assert not aot.compile_kernel(aot.KERNELS[0], 80, 999, 2).vectorised


@pytest.mark.skipif(triton.__version__ != "3.9.0", reason="the page's table is from Triton 3.9.0")
def test_the_page_holds_what_the_command_prints(compiled):
    assert aot.report(compiled) in (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")


def test_the_router_spills_nothing_and_loads_16_bytes_at_a_time():
    cases = aot_route.compile_routes((80, 90))
    for case in cases:
        assert case.spill_bytes == 0 and case.registers <= 128, case
        assert case.vectorised or case.modulators > 8, case
    if triton.__version__ == "3.9.0":
        assert aot_route.report_routes(cases) in (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")


T, V, E, K, D = 3, 7, 4, 2, 8


def _gate(**other):
    given = {
        "increment_TD": torch.ones(T, D),
        "table_VD": torch.ones(V, D),
        "ids_T": torch.zeros(T, dtype=torch.int64),
        "scale_D": torch.ones(D),
    }
    return gate_rows(**(given | other), gain=1.0, eps=1e-6)


def _mix(**other):
    given = {
        "increment_TD": torch.ones(T, D),
        "table_VED": torch.ones(V, E, D),
        "ids_T": torch.zeros(T, dtype=torch.int64),
        "chosen_TK": torch.zeros(T, K, dtype=torch.int64),
        "weights_TK": torch.ones(T, K),
        "scale_D": torch.ones(D),
    }
    return mix_rows_into(**(given | other), gain=1.0, eps=1e-6)


def _route(**other):
    given = {"hidden_TD": torch.ones(T, D), "router_ED": torch.ones(E, D), "top_k": K}
    return route_tokens(**(given | other))


WRONG = [
    (_route, {"hidden_TD": torch.ones(1, T, D)}, r"hidden: shape \(1, 3, 8\), expected \(any, any\)"),
    (_route, {"router_ED": torch.ones(E, D + 1)}, r"router: shape \(4, 9\), expected \(any, 8\)"),
    (_route, {"router_ED": torch.ones(E, D).double()}, "router: torch.float64, accepted are float32"),
    (_route, {"router_ED": torch.ones(257, D)}, "router: 257 modulators, 1 to 256 are accepted"),
    (_route, {"top_k": 5}, "top_k: 5, 1 to 4 are accepted"),
    (_route, {"router_ED": torch.ones(E, D, requires_grad=True)}, "route_tokens has no backward"),
    (_gate, {"increment_TD": torch.ones(1, T, D)}, r"increment: shape \(1, 3, 8\), expected \(any, any\)"),
    (
        _gate,
        {"increment_TD": torch.ones(T, D).double()},
        "increment: torch.float64, accepted are float32, bf",
    ),
    (_gate, {"increment_TD": torch.ones(T, 8193)}, "rows of width 8193: .* 1 to 8192 are accepted"),
    (_gate, {"table_VD": torch.ones(V, D + 1)}, r"table: shape \(7, 9\), expected \(any, 8\)"),
    (_gate, {"table_VD": torch.ones(V, D, dtype=torch.int8)}, "table: torch.int8, accepted are"),
    (_gate, {"table_VD": torch.ones(D, V).T}, r"table: strides \(1, 7\), the last has to be 1"),
    (_gate, {"ids_T": torch.zeros(T + 1, dtype=torch.int64)}, r"ids: shape \(4,\), expected \(3\)"),
    (_gate, {"ids_T": torch.zeros(T)}, "ids: torch.float32, accepted are int64, int32"),
    (_gate, {"scale_D": torch.ones(D - 1)}, "scale: shape"),
    (_gate, {"scale_D": torch.ones(D, device="meta")}, "tensors on cpu, meta: expected on one device"),
    (_mix, {"table_VED": torch.ones(V, D)}, "table: shape"),
    (_mix, {"chosen_TK": torch.zeros(T, dtype=torch.int64)}, "chosen: shape"),
    (_mix, {"chosen_TK": torch.zeros(T, 0, dtype=torch.int64)}, "chosen: no rows a token"),
    (_mix, {"weights_TK": torch.ones(T, K + 1)}, r"weights: shape \(3, 3\), expected \(3, 2\)"),
    (_mix, {"increment_TD": torch.ones(T, 8193)}, "rows of width 8193"),
]


@pytest.mark.parametrize(("function", "other", "message"), WRONG)
def test_what_does_not_fit_is_refused(function, other, message):
    with pytest.raises(ValueError, match=message):
        function(**other)


@pytest.mark.parametrize("function", [_gate, _mix, _route])
def test_the_cpu_is_refused_where_triton_does_not_interpret(function):
    with pytest.raises(
        ValueError, match=r"tensors on cpu: the kernels run on a GPU, or under TRITON_INTERPRET=1"
    ):
        function()


def test_folded_rows_refuse_to_lose_a_gradient():
    table, ids = torch.ones(V, E, D, requires_grad=True), torch.zeros(T, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"gives rows no gradient: call it under torch\.no_grad"):
        folded_row_into(torch.ones(T, D), table, ids, ids)
    with pytest.raises(ValueError, match=r"chosen: shape \(3, 1\), expected \(3\)"):
        folded_row_into(torch.ones(T, D), table, ids, ids.unsqueeze(-1))


def test_the_folded_gate_refuses_to_lose_a_gradient():
    table, ids = torch.ones(V, D, requires_grad=True), torch.zeros(T, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"no backward: call it under torch\.no_grad"):
        folded_gate_rows(torch.ones(T, D), table, ids)
    with torch.no_grad(), pytest.raises(ValueError, match="tensors on cpu"):
        folded_gate_rows(torch.ones(T, D), table, ids)


def test_without_triton_the_package_imports_and_a_call_says_what_to_install(python):
    code = """
import sys
sys.modules["triton"] = None
import torch, retoken
from retoken.ops.triton import gate_rows
try:
    gate_rows(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1, dtype=torch.int64), torch.ones(2), 1.0, 1e-6)
except ImportError as error:
    print(error)
"""
    ran = python("-c", code)
    assert "retoken.ops.triton needs Triton: pip install 'triton>=3.5'" in ran.stdout, ran.stderr[-2000:]


def test_sizes_cover_a_row():
    for width in (1, 2, 63, 100, 768, 1000, 1536, 4096, 8192):
        sizes = launch.sizes(width, 3)
        assert width <= sizes["BLOCK_D"] < 2 * width or width == sizes["BLOCK_D"] == 1
        assert sizes["BLOCK_K"] == 4 and 1 <= sizes["num_warps"] <= 16
