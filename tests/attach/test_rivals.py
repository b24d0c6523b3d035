"""Rivals against a reading of their equations one token at a time, and what holds for all of them."""

import math

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

import retoken
from retoken import presets
from retoken.attach.rivals import (
    BigramConfig,
    EngramConfig,
    OverTokenizedConfig,
    PerLayerConfig,
    RivalConfig,
    ValueConfig,
)
from retoken.errors import AttachError, ConfigError
from retoken.ops.ngrams import ngram_hash
from retoken.testing import assert_close

V, D, LAYERS = 29, 16, 4
BACKBONE = LlamaConfig(
    vocab_size=V,
    hidden_size=D,
    intermediate_size=24,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=64,
    pad_token_id=0,
)
IDS = torch.tensor([[3, 7, 7, 2, 11, 28, 3, 7], [5, 1, 9, 9, 9, 0, 4, 20]])
RIVALS = [
    ValueConfig(),
    PerLayerConfig(size=0.5),
    BigramConfig(init_std=0.3, size=0.7),
    OverTokenizedConfig(init_std=0.3),
    EngramConfig(init_std=0.3, hashes=2),
]
BY_BIGRAM = [
    retoken.ReTokenConfig(index="bigram", index_size=1.7),
    retoken.MoRTConfig(index="bigram", num_modulators=3, top_k=2, index_size=0.6),
]
BY_BOTH = [
    retoken.ReTokenConfig(index="token_bigram", index_size=1.7),
    retoken.MoRTConfig(index="token_bigram", num_modulators=3, top_k=2, index_size=0.6),
]


def named(config):
    return config.type if isinstance(config, RivalConfig) else f"{config.type}-by-{config.index}"


def attached(config, seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(BACKBONE, dtype=torch.float64)
    retoken.attach(model, config)
    for name, parameter in model.retoken.named_parameters():  # nothing at zero: every path is seen
        if not name.endswith("table.weight"):
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def by_hand(ids, order, salt):
    """The hash of one row of ids, with Python's integers."""
    found = []
    for t in range(len(ids)):
        h = salt
        for back in range(order):
            token = ids[t - back] + 1 if t - back >= 0 else 0
            h = (h ^ token) * 0x5851F42D
            assert h < 1 << 63
            h = (h >> 31) ^ (h % (1 << 31))
        found.append(h)
    return found


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("salt", [0, 5])
def test_hash(order, salt):
    expected = [by_hand(row, order, salt) for row in IDS.tolist()]
    assert ngram_hash(IDS, None, order, salt).tolist() == expected


@pytest.mark.parametrize("rows", [1000, 4096, 20480, 50304])
@pytest.mark.parametrize("salt", [0, 1, 3])
def test_a_hash_spreads_and_tells_order_apart(rows, salt):
    """Bigrams fall into rows about as evenly as by chance, and salts and order matter."""
    ids = torch.cartesian_prod(torch.arange(300), torch.arange(300))
    found = ngram_hash(ids, None, 2, salt)[:, 1]
    load = found.remainder(rows).bincount(minlength=rows).double()
    assert load.std() < 1.3 * math.sqrt(90000 / rows)
    other = ngram_hash(ids, None, 2, salt + 1)[:, 1]
    assert (found.remainder(rows) == other.remainder(rows)).double().mean() < 4 / rows + 0.001
    assert (found == ngram_hash(ids.flip(1), None, 2, salt)[:, 1]).double().mean() < 0.004


def test_padding_is_no_token():
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
    mask = torch.cat([torch.zeros(2, 3), torch.ones(2, 8)], 1)
    for order in (2, 3):
        assert torch.equal(ngram_hash(padded, mask, order)[:, 3:], ngram_hash(IDS, None, order))


def rms(x, gain=None):
    scaled = x / torch.sqrt((x * x).mean() + 1e-6)
    return scaled if gain is None else scaled * gain


def outputs_of(model, module, before=False):
    """What a module of the model is given, or gives, when the model reads IDS."""
    seen = []
    if before:
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
    else:
        handle = module.register_forward_hook(lambda _, args, output: seen.append(output))
    model(IDS)
    handle.remove()
    return seen[0].detach()


def test_value():
    model = attached(ValueConfig())
    layer, module = model.model.layers[2], model.retoken.layers["2"]
    given, found = outputs_of(model, layer.self_attn.v_proj, before=False), []
    states = outputs_of(model, layer.self_attn, before=True)
    for b in range(2):
        for t in range(8):
            x, row = states[b, t], module.table.weight[IDS[b, t]]
            v = layer.self_attn.v_proj.weight @ x
            for g in range(4):
                gate = 2 * torch.sigmoid(module.gate[g] @ x)  # 32 channels are all 16
                v[4 * g : 4 * g + 4] = v[4 * g : 4 * g + 4] + gate * row[4 * g : 4 * g + 4]
            found.append(v)
    assert_close("v + 2 sigmoid(W x) E[x]", torch.stack(found).view(2, 8, D), given, units=64)


def layer_io(model, layer):
    """(what the backbone's own layer is given and gives) around what a rival does before and behind it."""
    entering = outputs_of(model, model.model.layers[layer].input_layernorm, before=True)
    leaving = outputs_of(model, model.model.layers[layer])
    return entering, leaving


def test_bigram():
    model = attached(BigramConfig(init_std=0.3, size=0.7))
    module = model.retoken.layers["0"]
    rows = module.table.weight.shape[0]
    assert rows == round(0.7 * LAYERS * V)
    entering, _ = layer_io(model, 1)
    _, before = layer_io(model, 0)
    for b, ids in enumerate(IDS.tolist()):
        for t, h in enumerate(by_hand(ids, 2, 0)):
            expected = before[b, t] + module.scale[1] * module.table.weight[h % rows]
            assert_close("h + lambda E", expected, entering[b, t], units=64)


def test_over_tokenized():
    model = attached(OverTokenizedConfig(init_std=0.3))
    module, embedded = model.retoken.layers["0"], model.model.embed_tokens.weight
    entering, _ = layer_io(model, 0)
    rows = LAYERS * V
    assert tuple(module.table.weight.shape) == (4 * rows, D // 4)
    for b, ids in enumerate(IDS.tolist()):
        hashes = [by_hand(ids, order, salt) for order in (2, 3) for salt in (0, 1)]
        for t, x in enumerate(ids):
            expected = embedded[x].clone()
            for i, h in enumerate(hashes):
                row = module.table.weight[i * rows + h[t] % rows]
                expected += module.projection[:, 4 * i : 4 * i + 4] @ row
            assert_close("E[x] + sum W_i E_i", expected, entering[b, t], units=64)


def test_per_layer():
    model = attached(PerLayerConfig(size=0.5))
    module, layer = model.retoken.layers["1"], model.model.layers[1]
    embedded = model.model.embed_tokens.weight
    _, before = layer_io(model, 0)
    leaving = outputs_of(model, model.model.layers[2].input_layernorm, before=True)
    # The layer without what is added behind it: its residual after attention, and its MLP's output.
    middle, mlp = outputs_of(model, layer.post_attention_layernorm, before=True), outputs_of(model, layer.mlp)
    assert before.shape == middle.shape
    for b, ids in enumerate(IDS.tolist()):
        for t, x in enumerate(ids):
            h = middle[b, t] + mlp[b, t]
            context = rms(module.context @ embedded[x] / math.sqrt(D), module.context_scale)
            u = (math.sqrt(D // 2) * module.table.weight[x] + context) / math.sqrt(2)
            gate = torch.nn.functional.gelu(module.gate @ h, approximate="tanh")
            expected = h + rms(module.projection @ (gate * u), module.scale)
            assert_close("h + RMSNorm(W (gelu(G h) u))", expected, leaving[b, t], units=256)


def test_engram():
    model = attached(EngramConfig(init_std=0.3, hashes=2))
    assert list(model.retoken.layers) == ["1", "2"]
    module = model.retoken.layers["2"]
    rows = module.table.weight.shape[0] // 4
    _, before = layer_io(model, 1)
    entering, _ = layer_io(model, 2)
    for b, ids in enumerate(IDS.tolist()):
        hashes = [by_hand(ids, order, salt) for order in (2, 3) for salt in (0, 1)]
        gated = []
        for t in range(8):
            e = torch.cat([module.table.weight[i * rows + h[t] % rows] for i, h in enumerate(hashes)])
            a = rms(before[b, t], module.query_scale) @ rms(module.key @ e, module.key_scale) / math.sqrt(D)
            gated.append(torch.sigmoid(a.sign() * a.abs().sqrt()) * (module.value @ e))
        normed = [rms(v, module.conv_scale) for v in gated]
        for t in range(8):
            taps = [(k, t - 3 * (3 - k)) for k in range(4)]
            blurred = sum(module.kernel[:, 0, k] * normed[s] for k, s in taps if s >= 0)
            expected = before[b, t] + gated[t] + torch.nn.functional.silu(blurred)
            assert_close("h + v' + SiLU(Conv(v'))", expected, entering[b, t], units=256)


@pytest.mark.parametrize("config", BY_BIGRAM, ids=named)
def test_modulators_by_bigram_read_the_bigrams_row(config):
    model = attached(config)
    table = model.retoken.layers["1"].table.weight
    assert table.shape[0] == round(config.index_size * V)
    plain = model(IDS).logits
    used = {h % table.shape[0] for ids in IDS.tolist() for h in by_hand(ids, 2, 0)}
    unused = [row for row in range(table.shape[0]) if row not in used]
    with torch.no_grad():
        table[unused] += 1
        assert torch.equal(model(IDS).logits, plain)
        table[sorted(used)[0]] += 1
        assert not torch.equal(model(IDS).logits, plain)


def gate_by_hand(model, layer):
    """What ReToken's gate is made of with both indices: the sum of two rows, normalised."""
    module = model.retoken.layers[str(layer)]
    table, found = module.table.weight, []
    for ids in IDS.tolist():
        hashes = by_hand(ids, 2, 0)
        rows = [table[x] + table[V + h % (len(table) - V)] for x, h in zip(ids, hashes, strict=True)]
        found.append(torch.stack([1 + module.scale * math.sqrt(D) * e / (e.norm() + 1e-6) for e in rows]))
    return torch.stack(found)


def test_retoken_by_both_gates_by_the_sum_of_two_rows():
    model = attached(BY_BOTH[0])
    layer, bare = model.model.layers[1], model.model.layers[1].mlp
    gated = outputs_of(model, layer) - outputs_of(model, layer.post_attention_layernorm, before=True)
    states = outputs_of(model, bare, before=True)
    increment = bare.down_proj(bare.act_fn(bare.gate_proj(states)) * bare.up_proj(states))
    assert_close("m * p", increment * gate_by_hand(model, 1), gated, units=64, floor=0.1)


def test_mort_by_both_mixes_the_sums_of_two_rows():
    """A bigram's row may move into its token's row, where they occur together only."""
    model = attached(BY_BOTH[1])
    plain, table = model(IDS).logits.detach(), model.retoken.layers["0"].table.weight
    hashed = [V + h % (len(table) - V) for ids in IDS.tolist() for h in by_hand(ids, 2, 0)]
    tokens = IDS.flatten().tolist()
    place = next(i for i, h in enumerate(hashed) if hashed.count(h) == 1 and tokens.count(tokens[i]) == 1)
    with torch.no_grad():
        table[tokens[place]] += table[hashed[place]]
        table[hashed[place]] = 0
    assert_close("logits", plain, model(IDS).logits, units=256)
    with torch.no_grad():
        table[tokens[place]] = 0
    assert not torch.allclose(plain, model(IDS).logits)


@pytest.mark.parametrize("config", [*RIVALS, *BY_BIGRAM, *BY_BOTH], ids=named)
class TestEach:
    """What holds for all of them."""

    def test_round_trip(self, config, tmp_path):
        model = attached(config)
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
        assert_close("logits", model(IDS).logits, again(IDS).logits, units=64)
        for name, parameter in again.named_parameters():
            assert torch.equal(parameter, model.get_parameter(name)), name
        assert again.retoken.config == config

    def test_a_checkpoint_s_names_are_taken_by_load_state_dict(self, config, tmp_path):
        """As transformers' Trainer resumes: not strictly, so a name that is not known would go unnoticed."""
        model, fresh = attached(config), attached(config, seed=1)
        model.save_pretrained(tmp_path)
        found = fresh.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
        assert found.missing_keys == found.unexpected_keys == []
        assert_close("logits", model(IDS).logits, fresh(IDS).logits, units=64)

    @pytest.mark.parametrize("cached", [True, False])
    def test_detach(self, config, cached, tmp_path):
        torch.manual_seed(0)
        plain = AutoModelForCausalLM.from_config(BACKBONE, dtype=torch.float64).eval()
        plain.config.use_cache = cached
        logits = plain(IDS).logits
        retoken.attach(plain, config).save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
        for model in (plain, loaded):
            retoken.detach(model)
            assert torch.equal(model(IDS).logits, logits)
            assert model.config.use_cache is cached
            # Where the config says no, transformers makes generation's say no when it saves.
            assert model.generation_config.use_cache or not cached

    def test_gradients_and_groups(self, config):
        model = attached(config).train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []
        groups = retoken.param_groups(model)
        assert sum(p.numel() for _, p in groups["tables"]) == sum(
            module.table.weight.numel() for module in model.retoken.layers.values()
        )

    def test_counts(self, config):
        model = attached(config)
        counts = presets.count(BACKBONE, config, context_length=8)
        assert counts.stored_params == sum(p.numel() for p in model.parameters())
        tables = sum(module.table.weight.numel() for module in model.retoken.layers.values())
        assert counts.table_params == tables

    def test_activation_checkpointing(self, config):
        model = attached(config).train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        expected = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=IDS, labels=IDS).loss.backward()
        for name, parameter in model.named_parameters():
            assert_close(name, expected[name], parameter.grad, units=64)

    def test_compiles_into_one_graph(self, config):
        model = attached(config)
        torch._dynamo.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)
        assert_close("compiled", model(IDS).logits, compiled(input_ids=IDS, use_cache=False).logits, units=64)

    def test_left_padding(self, config):
        model = attached(config)
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), IDS], 1)
        mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(IDS)], 1)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        logits = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 3:]
        assert_close("padded", model(IDS).logits, logits, units=4096)

    def test_generate(self, config):
        model = attached(config)
        options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        made = model.generate(IDS, attention_mask=torch.ones_like(IDS), **options)
        for length in range(8, 12):
            step = model(made[:, :length]).logits[:, -1].argmax(-1)
            assert torch.equal(step, made[:, length])

    def test_is_refused_where_rows_are_not_served(self, config, tmp_path):
        """Serving takes the paper's modulators by any index (tests/serving/test_ngrams.py), and no rival."""
        if not isinstance(config, RivalConfig):
            return
        model = attached(config)
        for act in (retoken.fold, lambda model: retoken.place(model, "host")):
            with pytest.raises(ConfigError, match="accepted: retoken or mort"):
                act(model)
        model.save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="accepted: retoken or mort"):
            retoken.pack(tmp_path, tmp_path / "rows.bin")


RESUMES = [config for config in [*RIVALS, *BY_BIGRAM, *BY_BOTH] if not isinstance(config, EngramConfig)]
PADDED = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]])


@pytest.mark.parametrize("config", RESUMES, ids=named)
@pytest.mark.parametrize("mask", [None, PADDED], ids=["whole", "padded"])
def test_pieces_with_a_cache_are_the_whole(config, mask):
    model, past, found = attached(config), None, []
    positions = torch.arange(8).expand(2, 8) if mask is None else (mask.cumsum(1) - 1).clamp_min(0)
    for start, end in ((0, 1), (1, 4), (4, 5), (5, 8)):
        masked = None if mask is None else mask[:, :end]
        where = {"attention_mask": masked, "position_ids": positions[:, start:end]}
        out = model(IDS[:, start:end], past_key_values=past, use_cache=True, **where)
        past = out.past_key_values
        found.append(out.logits)
    whole = model(IDS, attention_mask=mask, position_ids=positions, use_cache=False).logits
    for row, seen in enumerate(torch.ones(2, 8).bool() if mask is None else mask.bool()):
        assert_close("logits", whole[row, seen], torch.cat(found, 1)[row, seen], units=4096)


def test_a_cache_that_is_cut_repeated_and_chosen_from():
    """What callers do to a cache between passes, they do to the ids in it."""
    model = attached(BY_BOTH[1])
    past = model(IDS, use_cache=True).past_key_values
    past.crop(-3)
    past.batch_repeat_interleave(2)
    past.reorder_cache(torch.tensor([2, 0, 3, 1]))
    past.batch_select_indices(torch.tensor([0, 1, 3]))
    wanted = model(IDS[[1, 0, 0]], use_cache=False).logits[:, 5:7]
    found = model(IDS[[1, 0, 0], 5:7], past_key_values=past, use_cache=True).logits
    assert_close("logits", wanted, found, units=4096)


def test_a_cache_without_ids_is_refused():
    model = attached(BY_BIGRAM[0])
    past = model(IDS, use_cache=True).past_key_values
    del past.layers[-1]
    with pytest.raises(
        AttachError, match=r"8 tokens before input_ids .* left no ids there; .* use_cache=False"
    ):
        model(IDS[:, :1], past_key_values=past)


def test_a_paged_cache_is_refused():
    """As `generate_batch` has it: a row of positions is of several sequences."""
    with pytest.raises(AttachError, match="not their ids; accepted: generate"):
        attached(BY_BIGRAM[0])(IDS, cache=object())


def test_engram_does_not_go_on_from_a_cache():
    model = attached(RIVALS[-1])
    assert not model.config.use_cache
    past = model.model(IDS, use_cache=True).past_key_values
    with pytest.raises(AttachError, match=r"more than ids is needed of them; .* use_cache=False"):
        model(IDS[:, :1], past_key_values=past)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BigramConfig(size=0), "size is 0; accepted"),
        (lambda: ValueConfig(size=2), "size is 2; accepted: 1"),
        (lambda: EngramConfig(hashes=0), "hashes is 0; accepted"),
        (lambda: retoken.ReTokenConfig(index="trigram"), "index is 'trigram'; accepted: token or bigram"),
        (lambda: retoken.ReTokenConfig(index_size=2), "index_size is 2; accepted: 1 with index 'token'"),
        (lambda: attached(EngramConfig(hashes=3)), "hashes is 3; accepted: a divisor of 16 / 2"),
        (lambda: attached(ValueConfig(gates=3)), "gates is 3; accepted: a divisor"),
    ],
)
def test_options_that_cannot_be(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_grouped_values_are_refused():
    config = LlamaConfig(**{**BACKBONE.to_dict(), "num_key_value_heads": 2})
    with pytest.raises(AttachError, match="v_proj gives 8 numbers, the model is 16 wide"):
        retoken.attach(AutoModelForCausalLM.from_config(config), ValueConfig())


def test_the_token_index_is_read_by_earlier_versions():
    assert "index" not in retoken.ReTokenConfig().to_dict()
    assert retoken.ReTokenConfig(index="bigram").to_dict()["index"] == "bigram"


ELEMENTWISE = {
    "value": 2 * D * LAYERS,
    "per_layer": 0,
    "bigram": 2 * D * LAYERS,
    "over_tokenized": D,
    "engram": 8 * D,
}
"""FLOPs that PyTorch's counter has no word for: gates and additions."""


@pytest.mark.parametrize("config", RIVALS, ids=named)
def test_flops_are_those_of_pytorchs_counter(config):
    def counted(model):
        with FlopCounterMode(display=False) as counter:
            model(input_ids=IDS, use_cache=False)
        return counter.get_total_flops() / IDS.numel()

    plain = counted(retoken.detach(attached(config)))
    found = counted(attached(config)) - plain
    assert (
        presets.count(BACKBONE, config, context_length=8).table_flops_per_token / 3
        == found + ELEMENTWISE[config.type]
    )
