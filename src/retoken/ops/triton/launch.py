"""What every launch needs: the kernels' module, checked arguments, block sizes, sums by token id."""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import AbstractContextManager
from types import ModuleType

import torch
from torch import Tensor

MAX_WIDTH = 8192
"""The widest row one program holds in registers."""
MAX_PROGRAMS = 1024
"""Programs of a backward pass, so rows of partial sums of the scale's gradient."""
MAX_CHUNK = 2048
"""Words of four bytes that a program of the gather moves."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32)


def kernels(name: str) -> ModuleType:
    """The module of kernels `retoken.ops.triton.<name>`, which imports Triton.

    Raises:
        ImportError: Triton is not installed; says what to install.
    """
    try:
        return importlib.import_module(f"retoken.ops.triton.{name}")
    except ImportError as error:
        if (error.name or "").split(".")[0] != "triton":
            raise
        raise ImportError("retoken.ops.triton needs Triton: pip install 'triton>=3.5' (Linux)") from error


def has_triton() -> bool:
    """Whether Triton is installed; does not import it."""
    return importlib.util.find_spec("triton") is not None


def check_width(width: int) -> None:
    """Raises ValueError unless rows of that width fit one program's registers."""
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(
            f"rows of width {width}: a program holds a row in registers, 1 to {MAX_WIDTH} are accepted"
        )


def sizes(width: int, top_k: int | None = None) -> dict[str, int]:
    """A kernel's compile-time sizes and launch options for rows of `width`, and `top_k` of them a token.

    Eight elements a thread, 16 bytes of bfloat16, with 1 to 16 warps; products and sums may fuse.
    """
    block = power_of_two(width)
    options = {
        "D": width,
        "BLOCK_D": block,
        "num_warps": min(max(block // 256, 1), 16),
        "enable_fp_fusion": True,
    }
    return options if top_k is None else options | {"K": top_k, "BLOCK_K": power_of_two(top_k)}


def power_of_two(size: int) -> int:
    """The smallest one that is at least `size`, which is at least 1."""
    return 1 << (size - 1).bit_length()


def tokens_per_program(tokens: int) -> int:
    """How many tokens a program of a backward pass takes, from their number alone: sums repeat anywhere."""
    return max(1, -(-tokens // MAX_PROGRAMS))


def check(name: str, x: Tensor, shape: tuple[int | None, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """Raises ValueError unless `x` has that shape (None: any size) and one of those types."""
    fits = x.dim() == len(shape) and all(
        want in (None, has) for want, has in zip(shape, x.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: shape {tuple(x.shape)}, expected ({wanted})")
    if x.dtype not in dtypes:
        accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name}: {x.dtype}, accepted are {accepted}")


def check_table(table: Tensor) -> None:
    """Raises ValueError unless a row's elements lie one after the other: a table is never copied."""
    if table.stride(-1) != 1 and table.shape[-1] > 1:
        raise ValueError(f"table: strides {table.stride()}, the last has to be 1")


def on_device(kernel: object, *tensors: Tensor) -> AbstractContextManager[object]:
    """The context to launch `kernel` in: the tensors' device is the current one.

    Raises:
        ValueError: the tensors lie on several devices, or not on a GPU and Triton does not interpret.
    """
    devices = {x.device for x in tensors}
    if len(devices) > 1:
        raise ValueError(f"tensors on {', '.join(sorted(map(str, devices)))}: expected on one device")
    interpreted = type(kernel).__name__ == "InterpretedFunction"
    if not tensors[0].is_cuda and not interpreted:
        raise ValueError(
            f"tensors on {tensors[0].device}: the kernels run on a GPU, or under TRITON_INTERPRET=1"
        )
    return torch.cuda.device_of(tensors[0])


def sum_by_row(grad_ND: Tensor, index_N: Tensor, rows: int) -> Tensor:
    """[rows, D]: sums of the grad_ND [N, D] of one index [N] each; the sum of `F.embedding`'s backward."""
    return torch.ops.aten.embedding_dense_backward(grad_ND, index_N.long(), rows, -1, False)
