"""Any number of processes, any division: 1 -> 2 -> 4 -> 1, and what comes back is the same, bit for bit."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import retoken
from retoken.checkpoint import Peers, Restorer, Saver, host_copy, newest
from retoken.checkpoint.chunks import rows_of
from retoken.checkpoint.folders import read
from retoken.errors import CheckpointError, TrainingError
from retoken.testing import run_distributed, tiny_model

CPU = torch.device("cpu")
TABLE = "retoken.layers.{}.table.weight"


class Cyclic:
    """A table of V rows of which process r of N holds rows r, r + N, r + 2 N, ..."""

    def __init__(self, rank: int, size: int, vocab: int) -> None:
        self.rank, self.size, self.vocab = rank, size, vocab

    def global_shape(self, local: Tensor) -> torch.Size:
        return torch.Size((self.vocab, *local.shape[1:]))

    def to_canonical(self, local: Tensor) -> Tensor:
        parts: list = [None] * self.size
        dist.all_gather_object(parts, local)
        whole = torch.empty(self.global_shape(local), dtype=local.dtype)
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part
        first, last = rows_of(self.rank, self.size, self.vocab)
        return whole[first:last]

    def from_canonical(self, chunk: Tensor, like: Tensor) -> Tensor:
        parts: list = [None] * self.size
        dist.all_gather_object(parts, chunk)
        return torch.cat(parts)[self.rank :: self.size].clone().to(like.device)


def build(vocab: int, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A whole model and random optimizer state; `seed` decides every value."""
    model = tiny_model("llama", vocab_size=vocab)
    retoken.attach(model, retoken.MoRTConfig(num_modulators=3, top_k=2))
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape)
    optimizer = optimizer_of(model)
    for parameter in model.parameters():
        state = {"exp_avg": torch.randn(parameter.shape), "exp_avg_sq": torch.rand(parameter.shape)}
        optimizer.state[parameter] = {"step": torch.tensor(3.0), **state}
    for table in tables(model):
        rows = {
            "row_sum": torch.rand(vocab),
            "last": torch.randint(99, (vocab,)),
            "half": torch.rand(vocab).half(),
        }
        optimizer.state[table] |= rows
    return model, optimizer


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    named = list(model.named_parameters())
    group = {"params": [p for _, p in named], "param_names": [name for name, _ in named]}
    return torch.optim.AdamW([group], fused=True)


def tables(model: nn.Module) -> list[nn.Parameter]:
    return [module.table.weight for module in retoken.modulators(model).values()]


def divide(model, optimizer, kind: str, rank: int, size: int, vocab: int) -> dict[str, Cyclic]:
    """Cut the tables, or all but them, as training on several processes would."""
    if kind == "fsdp":
        fully_shard(model, mesh=init_device_mesh("cpu", (size,)), ignored_params=set(tables(model)))
    if kind == "replicated":
        return {}
    layout = Cyclic(rank, size, vocab)
    for table in tables(model):
        table.data = table.data[rank::size].clone()
        for what, value in optimizer.state[table].items():
            if value.dim():
                optimizer.state[table][what] = value[rank::size].clone()
    return {TABLE.format(layer): layout for layer in range(3)}


def resave(rank: int, size: int, source: str, target: str, kind: str, vocab: int) -> list[str]:
    """Load `source` (or make the state, where there is none), check every value, save to `target`."""
    model, optimizer = build(vocab, seed=1 if source else 0)
    expected_model, expected = build(vocab, seed=0)
    layouts = divide(model, optimizer, kind, rank, size, vocab)
    if kind == "fsdp":  # its parameters are other objects, whose state the optimizer makes anew
        optimizer = optimizer_of(model)
    peers = Peers.open()
    if source:
        restorer = Restorer(newest(Path(source), peers), layouts, peers)
        restorer.model(model)
        restorer.optimizer(optimizer)
    divide(expected_model, expected, "cyclic" if layouts else "replicated", rank, size, vocab)
    if source:
        compare(model, optimizer, expected_model, expected)
    elif kind == "fsdp":
        raise AssertionError("the chain starts from whole tensors")
    saver = Saver(root=Path(target), keep=1, peers=peers)
    saver.save(5, host_copy(model, optimizer, layouts, CPU, peers), {})
    saver.wait()
    return [path.name for path in saver.finished()]


def compare(model, optimizer, expected_model, expected) -> None:
    ours, theirs = dict(model.named_parameters()), dict(expected_model.named_parameters())
    assert ours.keys() == theirs.keys()
    for name in ours:
        pairs = {"value": (ours[name], theirs[name])}
        a, b = optimizer.state[ours[name]], expected.state[theirs[name]]
        assert a.keys() == b.keys(), name
        for what, (x, y) in (pairs | {what: (a[what], b[what]) for what in b}).items():
            x = x.full_tensor() if hasattr(x, "full_tensor") else x
            assert x.dtype == y.dtype and torch.equal(x.detach(), y.detach()), (name, what)


def chain(tmp_path: Path, sizes: tuple[int, ...], kinds: tuple[str, ...], vocab: int = 131) -> list[Path]:
    """One checkpoint after the other, each read and written by another number of processes."""
    source, written = "", []
    for number, (size, kind) in enumerate(zip(sizes, kinds, strict=True)):
        target = tmp_path / str(number)
        names = run_distributed(resave, size, source, str(target), kind, vocab)
        assert names == [["step-000005"]] * size
        source = str(target)
        written.append(target / "step-000005")
    return written


def assert_same_tensors(paths: list[Path]) -> None:
    """All but the random state of each process."""
    found = [read(path).tensors().read_all() for path in paths]
    keys = [{key for key in tensors if not key.startswith("rng.")} for tensors in found]
    assert all(other == keys[0] for other in keys)
    for tensors in found[1:]:
        assert all(torch.equal(tensors[key], found[0][key]) for key in keys[0])


@pytest.mark.parametrize("kind", ["cyclic", "fsdp"])
def test_resharding_1_2_4_1_changes_no_bit(tmp_path, kind):
    paths = chain(tmp_path, (1, 2, 4, 1), ("cyclic", kind, kind, "cyclic"))
    assert_same_tensors(paths)
    assert [read(path).world_size for path in paths] == [1, 2, 4, 1]
    assert [len(list(path.glob("shard-*"))) for path in paths] == [1, 2, 4, 1]
    one, _, four, again = (read(path) for path in paths)
    assert {f"rng.{rank}.cpu" for rank in range(4)} <= set(four.tensors().index)
    boxes = four.tensors().index["retoken.layers.0.table"].boxes
    assert [(box.offsets[0], box.shape[0]) for box in boxes] == [(0, 33), (33, 33), (66, 33), (99, 32)]
    assert one.files.keys() == again.files.keys()


def test_divided_and_replicated_tables_are_one_format(tmp_path):
    paths = chain(tmp_path, (2, 2, 4), ("replicated", "cyclic", "replicated"))
    assert_same_tensors(paths)
    # What every process has whole is written once, and about evenly.
    index = read(paths[0]).tensors().index
    assert all(len(entry.boxes) == 1 for entry in index.values())
    sizes = [path.stat().st_size for path in paths[2].glob("shard-*")]
    assert max(sizes) < 1.5 * min(sizes)


def test_fewer_rows_than_processes(tmp_path):
    """Some processes hold nothing of a table: 3 tokens over 4, then over 2."""
    assert_same_tensors(chain(tmp_path, (1, 4, 2), ("cyclic", "cyclic", "cyclic"), vocab=3))


def damage(rank: int, size: int, root: str) -> str:
    """What every process says of a checkpoint of which only one shard is damaged."""
    try:
        newest(Path(root), Peers.open())
    except CheckpointError as error:
        return str(error)
    return ""


def test_all_processes_name_the_shard_that_one_of_them_read(tmp_path):
    (path,) = chain(tmp_path, (4,), ("cyclic",))
    shard = path / "shard-00003-of-00004.safetensors"
    with shard.open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\0\0\0" if shard.read_bytes()[-3:] != b"\0\0\0" else b"\1\1\1")
    found = run_distributed(damage, 2, str(path.parent))
    assert found[0] == found[1] and found[0].startswith(f"{shard} is damaged (crc32 ")


def full_disk(rank: int, size: int, root: str) -> str:
    """The disk refuses the last process's file of the second checkpoint."""
    model, optimizer = build(131, seed=0)
    peers = Peers.open()
    layouts = divide(model, optimizer, "cyclic", rank, size, 131)
    saver = Saver(root=Path(root), keep=3, peers=peers)
    saver.save(1, host_copy(model, optimizer, layouts, CPU, peers), {})
    saver.wait()
    if rank == size - 1:
        from retoken.checkpoint import storage

        def refuse(path, *args):
            raise OSError(28, "No space left on device")

        storage.write_tensors = refuse  # this process is the rank's own
    saver.save(2, host_copy(model, optimizer, layouts, CPU, peers), {})
    try:
        saver.wait()
    except TrainingError as error:
        return str(error)
    return ""


def test_a_disk_that_is_full_for_one_process_stops_all_with_the_last_good_checkpoint(tmp_path):
    found = run_distributed(full_disk, 2, str(tmp_path))
    good = tmp_path / "step-000001"
    assert (
        found
        == [f"{tmp_path}/step-000002: cannot write (the disk is full); last good checkpoint: {good}"] * 2
    )
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
