"""Every family that is served, both modulators, every option: the tokens of transformers."""

import pytest
from engines_common import assert_same, by_transformers, by_vllm, prompts, save, served

import retoken

R, M = retoken.ReTokenConfig, retoken.MoRTConfig
MIXTURE = {"moe_intermediate_size": 64}
FAMILIES = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "smollm3": {},
    "starcoder2": {},
    "olmo": {},
    "gemma": {},
    "gemma2": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16},
    "olmo2": {},
    "olmo3": {"sliding_window": 16},
    "phi3": {},
    "gpt2": {"n_embd": 128, "n_layer": 3, "n_head": 4, "n_positions": 256},
    "mixtral": {"intermediate_size": 64},
    "qwen2_moe": {**MIXTURE, "shared_expert_intermediate_size": 64},
    "qwen3_moe": MIXTURE,
    "olmoe": {"intermediate_size": 64},
    "glm4_moe": MIXTURE,
}
OPTIONS = {
    "retoken-l2": R(norm="l2"),
    "retoken-some": R(layers=[0, 2]),
    "mort-block": M(num_modulators=4, top_k=2, router_input="block_input"),
    "mort-delay": M(num_modulators=4, top_k=2, injection_delay=1),
    "mort-block-delay": M(num_modulators=4, top_k=3, injection_delay=2, router_input="block_input"),
    "mort-one": M(num_modulators=3, top_k=1),
    "mort-l2-some": M(norm="l2", layers=[1]),
    "retoken-bigram": R(index="bigram", index_size=2),
    "retoken-both": R(index="token_bigram"),
    "mort-bigram-delay": M(num_modulators=4, top_k=2, index="bigram", injection_delay=1),
    "mort-both": M(num_modulators=3, top_k=2, index="token_bigram", router_input="block_input"),
}


KINDS = {"retoken": R(), "mort": M(num_modulators=4, top_k=2)}
TOLERANCE = {"gemma2": 1e-4}
"""Its logits and attention scores go through a tanh, which the two engines round differently."""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{(family, kind): its folder, transformers' answers}.

    All before one is served: vLLM's Transformers backend leaves its marks on the classes of transformers.
    """
    root, found = tmp_path_factory.mktemp("families"), {}
    for family, overrides in FAMILIES.items():
        for kind, config in KINDS.items():
            folder = save(root / f"{family}-{kind}", config, family, **overrides)
            found[family, kind] = folder, by_transformers(folder, prompts())
    return found


def _check(folder, wanted=None, tolerance=2e-5, **options):
    asked = prompts()
    wanted = wanted or by_transformers(folder, asked)
    with served(folder, **options) as llm:
        assert_same(wanted, by_vllm(llm, asked), tolerance)
        assert_same(wanted, [by_vllm(llm, [prompt])[0] for prompt in asked], tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family, kind, made):
    _check(*made[family, kind], TOLERANCE.get(family, 2e-5))


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, tmp_path):
    _check(save(tmp_path / "model", OPTIONS[name]))


@pytest.mark.parametrize("family", ["gemma2", "olmo3"])
def test_rows_by_bigrams_with_sliding_windows(family, tmp_path):
    """Their caches come in groups of layers."""
    folder = save(tmp_path / "model", M.by_token_and_bigram(2), family, **FAMILIES[family])
    _check(folder, tolerance=TOLERANCE.get(family, 2e-5))


FOLDED = {
    "retoken": R(),
    "mort-one": M(num_modulators=3, top_k=1),
    "mort": M(num_modulators=4, top_k=2),
    "retoken-bigram": R(index="bigram", index_size=2),
    "recipe": M.by_token_and_bigram(2),
}


@pytest.mark.parametrize("config", FOLDED.values(), ids=FOLDED)
def test_folded(config, tmp_path):
    _check(save(tmp_path / "model", config, fold=True))


@pytest.mark.parametrize("kind", ["retoken", "mort-block-delay", "mort-both"])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_compiled(family, kind, tmp_path):
    config = OPTIONS.get(kind, R())
    _check(save(tmp_path / "model", config, family, **FAMILIES[family]), enforce_eager=False)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_by_vllm_s_transformers_backend(kind, made):
    _check(*made["smollm3", kind], enforce_eager=False)


@pytest.mark.parametrize("name", ["retoken-l2", "retoken-some", "retoken-both", "mort-one", "mort-delay"])
def test_options_are_compiled(name, tmp_path):
    _check(save(tmp_path / "model", OPTIONS[name]), enforce_eager=False)


def test_half_precision_is_served(tmp_path):
    """In bfloat16 two engines round differently: near ties may go either way, most tokens may not."""
    folder, asked = save(tmp_path / "model", R()), prompts()
    with served(folder, dtype="bfloat16") as llm:
        found = by_vllm(llm, asked)
    wanted = by_transformers(folder, asked)
    first = sum(a[0] == b[0] for (a, _), (b, _) in zip(wanted, found, strict=True))
    assert first >= len(asked) - 1
