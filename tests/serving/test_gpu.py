"""Placed rows on a GPU are the resident model's, bit for bit: every tier, rows ahead, CUDA graphs."""

import copy

import pytest
import torch

import retoken
from retoken.bench.decode.passes import GraphPasses
from retoken.testing import randomize, tiny_model, token_ids

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

GPU = torch.device("cuda")
WIDE = {"hidden_size": 512, "num_hidden_layers": 8, "vocab_size": 4096, "max_position_embeddings": 256}
WAYS = {
    "device": {"tables": "device", "rows": "float32"},
    "host": {"tables": "host"},
    "host, gathered by the device": {"tables": "host", "gather": "device"},
    "disk": {"tables": "disk", "path": True},
    "host over disk": {"tables": "disk", "budget": {"host": 60_000}, "path": True},
    "device over host": {"tables": "host", "budget": {"device": 40_000}},
}


@pytest.fixture(params=["eager", "triton"])
def kernels(request):
    """What modulators compute with."""
    if request.param == "triton":
        pytest.importorskip("triton")
    return request.param


def placed(model, way, folder, **options):
    """A copy of the model with its rows there."""
    found, asked = copy.deepcopy(model), WAYS[way] | options
    if asked.get("path"):
        asked["path"] = folder / "rows.bin"
    if asked.get("budget"):
        asked["counts"] = torch.arange(model.config.vocab_size, 0, -1).numpy()
    placement = retoken.place(found, **asked)
    if asked.get("gather") == "device":
        assert placement.gathered_by == "device", "the host gathers instead"
    return found


def wide(name="retoken"):
    """Eight layers 512 wide, so that copies and gathers take a while."""
    config = retoken.ReTokenConfig() if name == "retoken" else retoken.MoRTConfig(num_modulators=4, top_k=2)
    model = retoken.attach(tiny_model("llama", **WIDE), config).eval()
    randomize(model.retoken)
    return model.to(GPU)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("folded", [False, True])
@torch.no_grad()
def test_logits_and_greedy_tokens(build, kind, kernels, way, folded, tmp_path):
    model = build(kind, folded=folded).to(GPU)
    retoken.use_kernels(model, kernels)
    other = placed(model, way, tmp_path)
    for shape in ((2, 7), (1, 1), (4, 33)):
        ids = token_ids(*shape, seed=shape[1]).to(GPU)
        assert torch.equal(model(input_ids=ids).logits, other(input_ids=ids).logits), shape
    ids = token_ids(3, 9).to(GPU)
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(model.generate(ids, **options), other.generate(ids, **options))


@pytest.mark.parametrize("rows", ["int8", "float8_e4m3", "bfloat16"])
@pytest.mark.parametrize("name", ["retoken", "mort"])
@torch.no_grad()
def test_short_rows_are_the_same_everywhere(build, name, rows, tmp_path):
    model = build(name).to(GPU)
    ids = token_ids(2, 7).to(GPU)
    ways = [way for way in WAYS if "over" not in way]
    found = [placed(model, way, tmp_path, rows=rows)(input_ids=ids).logits for way in ways]
    assert all(torch.equal(found[0], each) for each in found[1:])
    there = copy.deepcopy(model).cpu()
    retoken.place(there, "host", rows=rows)
    torch.testing.assert_close(found[0].cpu(), there(input_ids=ids.cpu()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("way", [way for way in WAYS if way.startswith("host")])
@pytest.mark.parametrize("name", ["retoken", "mort"])
@torch.no_grad()
def test_many_passes_with_rows_ahead(name, way, tmp_path):
    """Nothing waits for the device between passes: a buffer filled too early or read too soon would show."""
    model = wide(name)
    other = placed(model, way, tmp_path)
    passes = [token_ids(2, 1 + seed % 40, vocab=4096, seed=seed).to(GPU) for seed in range(120)]
    found = []
    for now, later in zip(passes, [*passes[1:], None], strict=True):
        found.append(other(input_ids=now, use_cache=False).logits.sum(-1))
        if later is not None:
            other.retoken.source.prefetch(later)
    for ids, got in zip(passes, found, strict=True):
        assert torch.equal(model(input_ids=ids, use_cache=False).logits.sum(-1), got)


def decoder(model, kernels="eager"):
    """Decoding by replays of one graph, behind a prompt."""
    retoken.use_kernels(model, kernels)
    passes = GraphPasses(model, batch=1, room=80)
    passes.first(token_ids(1, 7, vocab=4096).to(GPU))
    return passes


def step(passes, number):
    """Logits [V] behind a token that follows from a number."""
    return passes.further(torch.tensor([[3 + 17 * number]], device=GPU))[0, -1].clone()


@pytest.mark.parametrize("way", ["host", "host, gathered by the device"])
@pytest.mark.parametrize("name", ["retoken", "mort"])
@torch.no_grad()
def test_replays_of_a_cuda_graph(name, way, kernels, tmp_path):
    model = wide(name)
    other = placed(model, way, tmp_path)
    wanted, found = decoder(model, kernels), decoder(other, kernels)
    tokens = set()
    for number in range(40):
        logits = step(found, number)
        assert torch.equal(step(wanted, number), logits), number
        tokens.add(logits.argmax().item())
    assert len(tokens) > 1


@pytest.mark.parametrize("way", ["host", "host, gathered by the device"])
@torch.no_grad()
def test_prompts_between_replays(way, tmp_path):
    """Each has its own rows, and leaves the graph's alone."""
    model = wide()
    other = placed(model, way, tmp_path)
    wanted, found = decoder(model), decoder(other)
    for number in range(20):
        ids = token_ids(1, 5 + 7 * number, vocab=4096, seed=number).to(GPU)
        assert torch.equal(model(input_ids=ids).logits, other(input_ids=ids).logits), number
        assert torch.equal(step(wanted, number), step(found, number)), number


@torch.no_grad()
def test_rows_that_change_in_place(build, tmp_path):
    for way in ("host", "host, gathered by the device", "device"):
        model = build("retoken").to(GPU)
        other = placed(model, way, tmp_path)
        rows = torch.randn_like(model.retoken.layers["1"].table.weight)
        model.retoken.layers["1"].table.weight.copy_(rows)
        other.retoken.source.replace(1, rows)
        ids = token_ids(2, 7).to(GPU)
        assert torch.equal(model(input_ids=ids).logits, other(input_ids=ids).logits), way


@torch.no_grad()
def test_a_folder_is_loaded_straight_into_host_memory(build, tmp_path):
    model = build("mort").to(GPU)
    model.save_pretrained(tmp_path / "model")
    before = torch.cuda.memory_allocated()
    for gather in ("host", "device"):
        other = retoken.load(tmp_path / "model", tables="host", gather=gather, device="cuda")
        ids = token_ids(2, 7).to(GPU)
        assert torch.equal(model(input_ids=ids).logits, other.eval()(input_ids=ids).logits), gather
        del other
    assert torch.cuda.memory_allocated() <= before + (1 << 20)
