"""The device's gather in Triton's interpreter, beside the host's, bit for bit. Run by test_direct.py."""

import pytest
import torch

from retoken.ops.triton import gather, launch
from retoken.serving import RecordLayout, direct
from retoken.serving.direct import DeviceStage

CPU, V = torch.device("cpu"), 19
KINDS = ("float32", "bfloat16", "int8", "float8_e4m3")


class Recorder:
    """A lane that writes down what happens; poisons what it launches into beforehand."""

    def __init__(self):
        self.log, self.graph = [], False

    def launch(self, act, reads):
        act()
        self.log.append("launch")

    def mark(self):
        self.log.append("mark")
        return self.log.count("mark")

    def wait(self, event):
        self.log.append(("wait", event))

    def follow(self):
        self.log.append("follow")

    def finish(self, event):
        self.log.append(("finish", event))

    def capturing(self):
        return self.graph


def make(kind, per_token, width, capacity=8, layers=(0, 1, 3)):
    shape = (V, width) if per_token is None else (V, per_token, width)
    rows = {i: torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in layers}
    layout = RecordLayout(vocab_size=V, layers=layers, rows_per_token=per_token, width=width, rows=kind)
    records = layout.encode(rows)
    around = torch.full((V + 2, layout.record_bytes), 0xFF, dtype=torch.uint8)
    around[1:-1] = records
    stage = DeviceStage(layout, around[1:-1], CPU, capacity)
    stage.lane = Recorder()
    for buffers in stage._sets:
        buffers.device.fill_(0xFF)
    return stage, layout, records


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("per_token", "width"), [(None, 1), (None, 33), (3, 12), (5, 1000)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (5, 7)])
@pytest.mark.parametrize("at_once", [0, 1 << 30])
def test_bytes_are_the_hosts(kind, per_token, width, shape, at_once, monkeypatch):
    monkeypatch.setattr(direct.DeviceStage, "at_once", at_once)
    stage, layout, records = make(kind, per_token, width)
    ids = torch.randint(0, V, shape, generator=torch.Generator().manual_seed(3))
    buffers = stage.fetch(ids)
    for number, layer in enumerate(layout.layers):
        rows, positions = stage.rows(buffers, layer, torch.float32)
        wanted = torch.full((ids.numel(), layout.staged_bytes), 0xFF, dtype=torch.uint8)
        layout.parts_of(records[ids.flatten()], number, out=wanted[None])
        used = layout.part_bytes + layout.layer_scale_bytes
        got = buffers.device[number, positions.flatten()]
        assert torch.equal(got[:, :used], wanted[:, :used])
        decoded = layout.decode(records[ids.flatten()], layer, torch.float32)
        assert torch.equal(rows[positions], decoded.unflatten(0, shape))
    if ids.numel() <= 8:
        assert (buffers.device[:, ids.numel() :] == 0xFF).all(), "room past the pass was written"
        assert (buffers.device[..., used:] == 0xFF).all(), "written past a part"


def test_a_launch_and_an_event_a_layer_or_one_for_all():
    stage, layout, _ = make("float32", None, 12)
    buffers = stage.fetch(torch.tensor([[1, 2]]))
    assert stage.lane.log == ["follow", "launch", "mark"] and buffers.events == [1, 1, 1]
    stage, layout, _ = make("float32", None, 12)
    stage.at_once = 0
    buffers = stage.fetch(torch.tensor([[1, 2]]))
    assert stage.lane.log == ["follow", *["launch", "mark"] * 3] and buffers.events == [1, 2, 3]
    stage.rows(buffers, layout.layers[1], torch.float32)
    assert stage.lane.log[-1] == ("wait", 2)


def test_a_captured_pass_has_room_of_its_own():
    stage, layout, records = make("int8", 3, 12, capacity=4)
    stage.lane.graph = True
    ids = torch.tensor([[1, 2], [2, 5], [7, 7]])
    captured = stage.fetch(ids)
    assert all(captured is not buffers for buffers in stage._sets)
    stage.lane.graph = False
    stage.prefetch(ids + 1)
    rows, positions = stage.rows(captured, 1, torch.float32)
    assert torch.equal(
        rows[positions], layout.decode(records[ids.flatten()], 1, torch.float32).unflatten(0, (3, 2))
    )
    assert torch.equal(positions, torch.arange(6).view(3, 2))


def test_what_does_not_agree_is_told():
    stage, _, _ = make("int8", 3, 12)
    assert stage.agrees()
    stage._on_host = lambda ids: stage.records[ids] ^ 1
    assert not stage.agrees()


def test_ids_of_four_bytes_and_chunks(monkeypatch):
    monkeypatch.setattr(gather, "MAX_CHUNK", 256)
    stage, layout, records = make("float32", 2, 300)
    assert -(-layout.part_bytes // 4 // 256) == 3 and launch.MAX_CHUNK == 2048
    ids = torch.tensor([[3, 18, 0]], dtype=torch.int32)
    buffers = stage.fetch(ids)
    for layer in layout.layers:
        rows, positions = stage.rows(buffers, layer, torch.float32)
        assert torch.equal(rows[positions][0], layout.decode(records[ids[0].long()], layer, torch.float32))
