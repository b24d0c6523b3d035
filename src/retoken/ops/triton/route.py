"""MoRT's router: the choice among a token's rows, in one kernel (Eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from retoken.ops.route import Routing
from retoken.ops.triton import launch
from retoken.ops.triton.launch import FLOATS

MAX_MODULATORS = 256
"""The most that one program compares."""
TILE = 16384
"""Numbers of the router that a program holds at once."""


def route_tokens(hidden_TD: Tensor, router_ED: Tensor, top_k: int) -> Routing:
    """Logits g = h R, the top K of them, and their sigmoids over their sum; all float32 (Eq. 3).

    Of equal logits the first is chosen first. Arithmetic is float32, each sum in an order that the shapes
    alone decide. Without gradients: `ops.route` has them.

    Args:
        hidden_TD: [T, D], float32, bfloat16 or float16, as the router.
        router_ED: [E, D], E up to 256.
        top_k: K, 1 to E.

    Raises:
        ValueError: a shape, type or device does not fit, or a gradient would be lost.
        ImportError: Triton is not installed.
    """
    modulators = _check(hidden_TD, router_ED, top_k)
    if torch.is_grad_enabled() and (hidden_TD.requires_grad or router_ED.requires_grad):
        raise ValueError("route_tokens has no backward: call it under torch.no_grad()")
    kernel = launch.kernels("route_kernels").route_forward
    hidden, router = hidden_TD.contiguous(), router_ED.contiguous()
    tokens, float32 = len(hidden), {"dtype": torch.float32, "device": hidden.device}
    logits, weights = torch.empty(tokens, modulators, **float32), torch.empty(tokens, top_k, **float32)
    chosen = torch.empty(tokens, top_k, dtype=torch.int64, device=hidden.device)
    sizes = route_sizes(hidden.shape[1], modulators, top_k)
    with launch.on_device(kernel, hidden, router):
        if tokens:
            kernel[(tokens,)](logits, chosen, weights, hidden, router, **sizes)
    return Routing(logits, chosen, weights)


def route_sizes(width: int, modulators: int, top_k: int) -> dict[str, int]:
    """The kernel's compile-time sizes and launch options: up to 64 numbers of a tile a thread."""
    block_e = launch.power_of_two(modulators)
    block_d = min(launch.power_of_two(width), TILE // block_e)
    return {
        "E": modulators,
        "BLOCK_E": block_e,
        "K": top_k,
        "BLOCK_K": launch.power_of_two(top_k),
        "D": width,
        "BLOCK_D": block_d,
        "num_warps": min(max(block_e * block_d // 1024, 1), 8),
        "enable_fp_fusion": True,
    }


def _check(hidden_TD: Tensor, router_ED: Tensor, top_k: int) -> int:
    """E."""
    launch.check("hidden", hidden_TD, (None, None), FLOATS)
    launch.check("router", router_ED, (None, hidden_TD.shape[1]), FLOATS)
    launch.check_width(hidden_TD.shape[1])
    modulators = len(router_ED)
    if not 1 <= modulators <= MAX_MODULATORS:
        raise ValueError(f"router: {modulators} modulators, 1 to {MAX_MODULATORS} are accepted")
    if not 1 <= top_k <= modulators:
        raise ValueError(f"top_k: {top_k}, 1 to {modulators} are accepted")
    return modulators
