"""What an attached model's modulators compute with."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from retoken.attach.api import stack_of
from retoken.attach.rivals import RivalConfig
from retoken.config import MoRTConfig
from retoken.errors import ConfigError
from retoken.nn import Modulator, ModulatorStack
from retoken.nn.folded import FoldedMoRT, FoldedReToken
from retoken.nn.kernels import OPERATORS, TRACED, Kernels
from retoken.nn.triton import TRITON
from retoken.ops.triton.launch import FLOATS, MAX_WIDTH, has_triton

KernelsName = Literal["eager", "triton", "traced"]
MODULATORS = (Modulator, FoldedReToken, FoldedMoRT)


def use_kernels(model: nn.Module, kernels: KernelsName) -> None:
    """Have a model's modulators compute with these from now on; `fold` keeps them, files do not.

    Args:
        model: an attached model, plain or folded, trained or placed; wrapped or not.
        kernels: "eager", what every model starts with: the plain operators, and the compiled passes of the
            CPU where no gradient is asked for. "triton": the Triton kernels, for a GPU. A MoRT residual that
            lands in a later layer (`injection_delay`) is made by the plain operators either way: the kernel
            makes and adds it in one. "traced": for inference with `torch.compile`, MoRT's choice without a
            sort or a product, which a compiler puts into the loops around it.

    Raises:
        AttachError: nothing is attached.
        ConfigError: no such kernels; or Triton is not installed, or rows are wider or of another type than
            its kernels take.
    """
    if kernels not in get_args(KernelsName):
        raise ConfigError(f"kernels is {kernels!r}; accepted: {', '.join(get_args(KernelsName))}")
    stack = stack_of(model)
    if isinstance(stack.config, RivalConfig):
        raise ConfigError(f"kernels is {kernels!r} for {stack.config.type}; accepted for: retoken, mort")
    if kernels == "triton":
        _check_triton(stack)
    named: dict[str, Kernels] = {"eager": OPERATORS, "triton": TRITON, "traced": TRACED}
    chosen = OPERATORS if kernels == "triton" and _delays(stack) else named[kernels]
    for module in stack.modules():
        if isinstance(module, MODULATORS):
            module.kernels = chosen


def _delays(stack: ModulatorStack) -> bool:
    return isinstance(stack.config, MoRTConfig) and stack.config.injection_delay > 0


def _check_triton(stack: ModulatorStack) -> None:
    if not has_triton():
        raise ConfigError(
            "kernels is 'triton', and Triton is not installed; accepted: 'eager', or "
            "pip install 'triton>=3.5' (Linux)"
        )
    width = max(module.table.width for module in stack.modules() if isinstance(module, MODULATORS))
    if width > MAX_WIDTH:
        raise ConfigError(
            f"kernels is 'triton', and rows are {width} numbers wide; accepted: up to {MAX_WIDTH}"
        )
    for name, parameter in stack.named_parameters():
        if parameter.dtype not in FLOATS:
            accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
            raise ConfigError(
                f"kernels is 'triton', and {name} is {str(parameter.dtype).removeprefix('torch.')}; "
                f"accepted: {accepted}"
            )
