"""One process: what is loaded is what was saved, bit for bit, in files that others can read."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

import retoken
from retoken.checkpoint import Peers, Restorer, Saver, build_model, described, host_copy, load_model, newest
from retoken.checkpoint.folders import read
from retoken.errors import CheckpointError
from retoken.testing import token_ids

CPU = torch.device("cpu")


def save(root: Path, model, optimizer, step: int = 3, **state) -> Path:
    """A checkpoint, finished."""
    saver = Saver(root=root, keep=2, texts=described(model))
    saver.save(step, host_copy(model, optimizer, {}, CPU, Peers()), state)
    saver.wait()
    (path,) = saver.finished()
    return path


def fresh(path: Path) -> tuple:
    """A model without values, and an optimizer without state."""
    model = build_model(path)
    named = list(model.named_parameters())
    group = {"params": [p for _, p in named], "param_names": [name for name, _ in named]}
    return model, torch.optim.AdamW([group], lr=1e-2, fused=True)


def test_model_optimizer_and_random_state_come_back(trained, tmp_path):
    model, optimizer = trained()
    torch.manual_seed(7)
    path = save(tmp_path, model, optimizer, position=12)
    expected = torch.rand(5)

    found = newest(tmp_path)
    assert (found.step, found.world_size, found.state) == (3, 1, {"position": 12})
    again, other = fresh(path)
    Restorer(found).model(again)
    Restorer(found).optimizer(other)
    Restorer(found).rng(CPU)
    assert torch.equal(torch.rand(5), expected)
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert optimizer.state[a].keys() == other.state[b].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for what, value in optimizer.state[a].items():
            assert torch.equal(value, other.state[b][what]) and value.dtype == other.state[b][what].dtype
    ids = token_ids(seed=5)
    for m, o in ((model, optimizer), (again, other)):
        m(input_ids=ids, labels=ids).loss.backward()
        o.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_model_of_a_checkpoint_loads_alone(trained, tmp_path):
    model, optimizer = trained("gpt2", retoken.ReTokenConfig())  # its output and input embeddings are one
    loaded = load_model(save(tmp_path, model, optimizer))
    assert type(loaded) is type(model) and not loaded.training
    assert torch.equal(loaded(input_ids=token_ids()).logits, model(input_ids=token_ids()).logits)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_what_is_loaded_has_memory_of_its_own_aligned_as_pytorch_allocates(trained, tmp_path):
    model, optimizer = trained()
    loaded = load_model(save(tmp_path, model, optimizer))
    places = [p.untyped_storage().data_ptr() for p in loaded.parameters()]
    assert len(set(places)) == len(places) and all(place % 64 == 0 for place in places)
    for path in (tmp_path / "step-000003").iterdir():
        path.write_bytes(b"")
    assert torch.equal(loaded(input_ids=token_ids()).logits, model(input_ids=token_ids()).logits)


def test_keys_are_the_pinned_ones_and_nothing_is_pickled(trained, tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, model, optimizer)
    names = sorted(p.name for p in path.iterdir())
    assert names == [
        *("config.json", "generation_config.json", "index.json"),
        *("shard-00001-of-00001.safetensors", "state.json"),
    ]
    keys = set(load_file(path / "shard-00001-of-00001.safetensors"))
    modulators = {
        f"retoken.layers.{layer}.{name}" for layer in range(3) for name in ("table", "scale", "router")
    }
    assert {key for key in keys if key.startswith("retoken.")} == modulators
    assert "optimizer.retoken.layers.0.table.exp_avg" in keys and "model.layers.0.mlp.up_proj.weight" in keys
    assert {key for key in keys if key.startswith("rng.")} == {"rng.0.cpu"}
    manifest = json.loads((path / "state.json").read_text())
    assert manifest["format_version"] == 2 and set(manifest["files"]) == set(names) - {"state.json"}


def test_the_files_are_those_of_torch_s_hugging_face_storage(trained, tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, model, optimizer)
    expected = read(path).tensors().read_all()
    found = {key: torch.zeros_like(value) for key, value in expected.items()}
    dcp.load(found, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_every_kind_of_state_keeps_its_type(trained, tmp_path):
    model, optimizer = trained()
    table = model.retoken.layers["0"].table
    optimizer.state[table.weight] = {
        "last": torch.arange(131, dtype=torch.int32),
        "mean": torch.rand(131).bfloat16(),
        "steps": 5,
        "empty": torch.empty(131, 0),
        "parts": torch.rand(131, 5),
    }
    path = save(tmp_path, model, optimizer)
    _, other = fresh(path)
    Restorer(read(path)).optimizer(other)
    names = other.param_groups[0]["param_names"]
    state = other.state[other.param_groups[0]["params"][names.index("retoken.layers.0.table.weight")]]
    saved = optimizer.state[table.weight]
    assert state.keys() == saved.keys() - {"empty"}, "what has no elements is not kept"
    assert state["steps"].item() == 5 and state["steps"].shape == ()
    for what in ("last", "mean", "parts"):
        assert state[what].dtype == saved[what].dtype and torch.equal(state[what], saved[what])


def test_bfloat16_rows_stay_bfloat16_and_another_type_is_refused_in_training(trained, tmp_path):
    model, optimizer = trained()
    for layer in model.retoken.layers.values():
        layer.table.to(torch.bfloat16)
    path = save(tmp_path, model, optimizer)
    again, _ = fresh(path)
    with pytest.raises(CheckpointError, match=r"table is torch.bfloat16; expected torch.float32"):
        Restorer(read(path)).model(again)
    Restorer(read(path)).model(again, to_train=False)
    ours, theirs = (m.retoken.layers["1"].table.weight for m in (model, again))
    assert theirs.dtype == torch.float32 and torch.equal(ours.float(), theirs)


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda model: retoken.detach(model), "holds retoken.layers.0.router, which the model lacks"),
        (lambda model: model.resize_token_embeddings(140), r"is \[131, .*\]; expected \[140, "),
        (lambda model: model.register_buffer("more", torch.ones(1)), "more is not in the checkpoint"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_the_tensor(trained, tmp_path, change, says):
    model, optimizer = trained()
    path = save(tmp_path, model, optimizer)
    change(model)
    with pytest.raises(CheckpointError, match=says):
        Restorer(read(path)).model(model)


def test_optimizer_state_of_another_model_is_refused(trained, tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, model, optimizer)
    group = optimizer.param_groups[0]
    kept = [(n, p) for n, p in zip(group["param_names"], group["params"], strict=True) if "router" not in n]
    smaller = torch.optim.AdamW([{"params": [p for _, p in kept], "param_names": [n for n, _ in kept]}])
    with pytest.raises(CheckpointError, match=r"holds optimizer\.retoken\.\S*router\.\w+, of a parameter"):
        Restorer(read(path)).optimizer(smaller)
    _, longer = trained(vocab_size=140)
    with pytest.raises(CheckpointError, match=r"is \[131, .*; the parameter it belongs to is \[140, "):
        Restorer(read(path)).optimizer(longer)
