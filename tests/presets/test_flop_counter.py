"""Counted FLOPs against PyTorch's own counter over real forward and backward passes: equal, not near."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import retoken
from retoken import presets
from retoken.config import ModulatorConfig, MoRTConfig, ReTokenConfig

LENGTH, SEQUENCES, VOCAB = 16, 2, 101
TOKENS = LENGTH * SEQUENCES


def counted(name: str, modulator: ModulatorConfig | None) -> tuple[float, float]:
    """What the counter finds a token: forward, and forward and backward."""
    config = presets.get(name).hf_config(vocab_size=VOCAB)
    config._attn_implementation = config._experts_implementation = "eager"
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    if modulator is not None:
        retoken.attach(model, modulator)
    ids = torch.randint(0, VOCAB, (SEQUENCES, LENGTH))
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        forward = counter.get_total_flops()
        loss.backward()
    return forward / TOKENS, counter.get_total_flops() / TOKENS


@pytest.mark.parametrize("name", ["llama-32x2", "llama-64x3", "moe-32x3", "moe-48x2"])
@pytest.mark.parametrize(
    "modulator",
    [None, ReTokenConfig(), MoRTConfig(num_modulators=6, top_k=2), MoRTConfig(num_modulators=6, top_k=6)],
    ids=["baseline", "retoken", "mort-2of6", "mort-6of6"],
)
def test_every_matrix_product_is_counted_and_no_other(name: str, modulator: ModulatorConfig | None) -> None:
    """The counter sees products of matrices only, and all positions in attention; what differs is known.

    Elementwise work it has no word for: ReToken's 4d a layer, and of MoRT's the mixture (2 d K) and 5d.
    """
    forward, training = counted(name, modulator)
    counts = presets.count(presets.get(name), modulator, vocab_size=VOCAB, context_length=LENGTH)
    width, layers = (int(part) for part in name.split("-")[1].split("x"))
    unseen = layers * 2 * (width + width) * (LENGTH - (LENGTH + 1) / 2)
    elementwise = 0
    if isinstance(modulator, MoRTConfig):
        elementwise = layers * width * (2 * modulator.top_k + 5)
    elif modulator is not None:
        elementwise = layers * width * 4
    assert counts.flops_per_token / 3 == forward - unseen + elementwise
    assert counts.flops_per_token == training - 3 * (unseen - elementwise)


@pytest.mark.parametrize("name", ["llama-64x3", "moe-48x3"])
def test_the_parts_beside_6_n_c(name: str) -> None:
    """6 N_c leaves out head and attention, and takes norms' vectors for products."""
    counts = presets.count(presets.get(name), vocab_size=VOCAB, context_length=LENGTH)
    width, layers = (int(part) for part in name.split("-")[1].split("x"))
    vectors = layers * 2 * width + width + (layers * 2 * 16 if name.startswith("moe") else 0)
    inside = counts.kaplan_flops_per_token - 6 * vectors
    parts = inside + counts.head_flops_per_token + counts.attention_flops_per_token
    assert parts == counts.backbone_flops_per_token
    assert counts.head_flops_per_token == 6 * VOCAB * width
