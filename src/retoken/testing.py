"""What tests of this package, and of programs on top of it, share: comparisons, tiny models, gloo ranks."""

from __future__ import annotations

import importlib.util
import inspect
import io
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCAB = 131
WIDTH = 32
DEPTH = 3

_DENSE = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_WINDOW = {"sliding_window": 4}
_NO_DROPOUT = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
_MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 1}
_SHARED = _MIXTURE | {"n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
_DEEPSEEK = _SHARED | _LATENT | {"num_key_value_heads": 4, "head_dim": 4, "n_group": 2, "topk_group": 1}

_OWN: dict[str, dict[str, Any]] = {
    "gemma2": _WINDOW,
    "gemma3_text": _WINDOW,
    "olmo3": _WINDOW,
    "gpt2": {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": 64} | _NO_DROPOUT,
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": _MIXTURE | {"shared_expert_intermediate_size": 16},
    "qwen3_moe": _MIXTURE,
    "olmoe": _MIXTURE,
    "deepseek_v2": _DEEPSEEK | {"topk_method": "greedy"},
    "deepseek_v3": _DEEPSEEK,
    "glm4_moe": _SHARED | {"n_group": 1, "topk_group": 1},
}


def tiny_config(model_type: str, **overrides: Any) -> PreTrainedConfig:
    """A backbone configuration of the family with width 32, depth 3 and 131 tokens."""
    return AutoConfig.for_model(model_type, **(_DENSE | _OWN.get(model_type, {}) | overrides))


def tiny_model(
    model_type: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> PreTrainedModel:
    """A random tiny backbone of the family, in evaluation mode, the same for the same seed.

    Mixtures run in float64 only with the "eager" experts, so float64 asks for them.
    """
    config = tiny_config(model_type, **overrides)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        _spread(model)
    if dtype == torch.float64 and config._experts_implementation == "grouped_mm":
        model.set_experts_implementation("eager")
    return model.to(dtype).eval()


@torch.no_grad()
def _spread(model: nn.Module) -> None:
    """Start values at which every part matters: biases and norm gains that are not all 0 or all 1."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
        else:
            parameter.mul_(4)


@torch.no_grad()
def randomize(modulators: nn.Module, seed: int = 1) -> None:
    """Tables, scales and routers from N(0, 1), so that a wrong place or row shows far above rounding."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in modulators.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))


def kernel_device() -> torch.device:
    """Where Triton kernels run: a GPU, or the CPU where they are interpreted (TRITON_INTERPRET=1)."""
    return torch.device("cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda")


def round_as_a_gpu_does(monkeypatch: Any) -> None:
    """Have Triton's interpreter round float32 to bfloat16 to the nearest: alone it cuts the low bits off."""
    import numpy as np
    from triton.runtime import interpreter

    cast = interpreter.InterpreterBuilder.cast_impl

    def nearest(self: Any, src: Any, dst_type: Any) -> Any:
        if str(dst_type.scalar) != "bf16" or str(src.dtype.scalar) != "fp32":
            return cast(self, src, dst_type)
        data = torch.from_numpy(np.ascontiguousarray(src.data)).bfloat16().view(torch.uint16).numpy()
        return interpreter.TensorHandle(data.reshape(src.data.shape), dst_type.scalar)

    for name in ("cast_impl", "create_fp_trunc"):
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, nearest)


def aligned(model: Any) -> Any:
    """A loaded model with its weights copied: kernels may round otherwise in a mapped file than in memory."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def token_ids(batch: int = 2, length: int = 7, *, vocab: int = VOCAB, seed: int = 0) -> Tensor:
    """[batch, length] ids, never one of the special tokens 0, 1 and 2."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocab, (batch, length), generator=generator)


def assert_close(
    name: str,
    ref: Tensor,
    out: Tensor,
    *,
    units: float = 32,
    floor: float = 1e-30,
    rounding: torch.dtype | None = None,
) -> None:
    """`out` equals `ref` up to `units` roundings of the reference's largest element.

    Args:
        name: what is compared, for the message.
        ref, out: of one shape.
        units: roundings allowed.
        floor: the largest element to reckon with where the reference is itself the rounding of zero.
        rounding: the dtype that rounds; None: the coarser of the two.

    Raises:
        AssertionError: another shape, a NaN or infinity on one side only, or a larger difference.
    """
    assert ref.shape == out.shape, f"{name}: shape {tuple(out.shape)}, expected {tuple(ref.shape)}"
    eps = max(torch.finfo(x).eps for x in ([rounding] if rounding else (ref.dtype, out.dtype)))
    a, b = ref.detach().double(), out.detach().double()
    finite = a.isfinite()
    assert torch.equal(finite, b.isfinite()), f"{name}: not finite in other places than the reference"
    if not finite.any():
        return
    largest, error = a[finite].abs().max().item(), (a - b)[finite].abs().max().item()
    allowed = units * eps * max(largest, floor)
    assert error <= allowed, (
        f"{name}: off by {error:.3g}, allowed {allowed:.3g} (largest element {largest:.3g})"
    )


def assert_grads_close(ref: nn.Module, out: nn.Module, **tolerance: Any) -> None:
    """Every parameter's gradient, by name, as `assert_close`; one without must be without on both."""
    theirs = dict(out.named_parameters())
    assert dict(ref.named_parameters()).keys() <= theirs.keys(), "the models' parameters have other names"
    for name, parameter in ref.named_parameters():
        grad, other = parameter.grad, theirs[name].grad
        assert (grad is None) == (other is None), f"{name}: a gradient on one side only"
        if grad is not None and other is not None:
            assert_close(f"gradient of {name}", grad, other, **tolerance)


def run_distributed(
    func: Callable[..., Any], world_size: int = 2, *args: Any, backend: str = "gloo", timeout: float = 180.0
) -> list[Any]:
    """Run `func(rank, world_size, *args)` on every rank of a fresh process group; what each rank returned.

    Args:
        func: a function at the top level of its file, which each rank loads anew.
        args: picklable; results: tensors, numbers, strings, lists and dicts of them.

    Raises:
        RuntimeError: a rank failed (with its traceback) or was not done in time.
    """
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "retoken.testing"])
    where = (inspect.getsourcefile(func), func.__qualname__)
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(
                target=_rank_main, args=(*where, folder, backend, rank, world_size, args), daemon=True
            )
            for rank in range(world_size)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(timeout)
        late = [process for process in ranks if process.is_alive()]
        for process in late:
            process.kill()
        return [_result_of(Path(folder), rank) for rank in range(world_size)]


def _result_of(folder: Path, rank: int) -> Any:
    failures = sorted(folder.glob("*.failed"))
    if failures:
        raise RuntimeError("\n".join(f"{path.stem}: {path.read_text()}" for path in failures))
    done = folder / f"rank{rank}.pt"
    if not done.exists():
        raise RuntimeError(f"rank {rank} did not finish")
    return torch.load(done, weights_only=True)


def _rank_main(
    file: str, name: str, folder: str, backend: str, rank: int, world_size: int, args: tuple[Any, ...]
) -> None:
    out = Path(folder)
    try:
        torch.set_num_threads(1)
        spec = importlib.util.spec_from_file_location("retoken_distributed_test", file)
        assert spec and spec.loader, file
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        method = f"file://{out / 'store'}"
        torch.distributed.init_process_group(backend, init_method=method, rank=rank, world_size=world_size)
        torch.distributed.barrier()  # one that is done at once would hang up on those still connecting
        buffer = io.BytesIO()
        torch.save(getattr(module, name)(rank, world_size, *args), buffer)
        (out / f"rank{rank}.tmp").write_bytes(buffer.getvalue())
        (out / f"rank{rank}.tmp").rename(out / f"rank{rank}.pt")
        torch.distributed.destroy_process_group()
    except BaseException:
        (out / f"rank{rank}.failed").write_text(traceback.format_exc())
        raise
