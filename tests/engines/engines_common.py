"""Tiny models served by vLLM inside this process, beside transformers."""

import gc
import os
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM

import retoken
from retoken.testing import tiny_model

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

VOCAB, NEW = 500, 16
DENSE = {
    "vocab_size": VOCAB,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
}
"""Heads as wide as vLLM's attention on a CPU wants them."""


def prompts(lengths=(1, 2, 5, 9, 17, 33, 50, 64)):
    """Of these lengths, in ids."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


def save(path, config, family="llama", *, fold=False, **overrides):
    """A tiny attached model with modulators that matter, in a folder."""
    model = tiny_model(family, **{**DENSE, **overrides})
    retoken.attach(model, config)
    generator = torch.Generator().manual_seed(3)
    strong = 3.0 if isinstance(config, retoken.MoRTConfig) else 0.5
    with torch.no_grad():
        for module in model.retoken.layers.values():
            module.scale.copy_(torch.randn(module.scale.shape, generator=generator) * strong)
    if fold:
        retoken.fold(model)
    model.config.eos_token_id = model.generation_config.eos_token_id = None
    model.save_pretrained(path)
    return path


@torch.no_grad()
def by_transformers(folder, asked, new=NEW):
    """(new ids, their log-probabilities) of each prompt, greedily."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for prompt in asked:
        ids = torch.tensor([prompt])
        out = model.generate(ids, max_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None)
        logprobs = model(out).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        tokens = out[0, len(prompt) :]
        found.append((tokens.tolist(), logprobs.gather(1, tokens[:, None])[:, 0].tolist()))
    return found


@contextmanager
def served(folder, placement=None, **options):
    """vLLM's engine with a folder; `placement` is the plugin's part of additional_config."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    if placement is not None:
        options["additional_config"] = {"retoken": placement}
    given = {"dtype": "float32", "max_model_len": 200, "max_num_seqs": 16, "enforce_eager": True, **options}
    llm = LLM(model=str(folder), skip_tokenizer_init=True, disable_log_stats=True, **given)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def by_vllm(llm, asked, new=NEW, **sampling):
    """As `by_transformers`, all prompts at once."""
    from vllm import SamplingParams

    options = {"temperature": 0, "max_tokens": new, "logprobs": 1, "ignore_eos": True, "detokenize": False}
    answers = llm.generate(
        [{"prompt_token_ids": p} for p in asked], SamplingParams(**{**options, **sampling}), use_tqdm=False
    )
    return [_tokens_of(out) for answer in answers for out in answer.outputs]


def _tokens_of(out):
    pairs = zip(out.logprobs, out.token_ids, strict=True)
    return list(out.token_ids), [step[token].logprob for step, token in pairs]


def assert_same(wanted, found, tolerance=2e-5):
    """The same tokens, and log-probabilities within the tolerance."""
    assert [tokens for tokens, _ in found] == [tokens for tokens, _ in wanted]
    apart = max(
        abs(p - q) for (_, a), (_, b) in zip(wanted, found, strict=True) for p, q in zip(a, b, strict=True)
    )
    assert apart < tolerance
