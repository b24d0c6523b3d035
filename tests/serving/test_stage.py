"""Fixed buffers on the way to a device: what is copied, when, and in which order it is waited for."""

import pytest
import torch

from retoken.errors import ConfigError
from retoken.serving import RecordLayout
from retoken.serving.stage import Stage

V, D = 19, 12
CPU = torch.device("cpu")


class Recorder:
    """A lane that writes down what happens."""

    def __init__(self):
        self.log, self.copies, self.graph = [], 0, False

    def copy(self, to, of):
        to.copy_(of)
        self.copies += 1
        self.log.append("copy")

    def launch(self, act, reads):
        act()
        self.copies += 1
        self.log.append("launch")

    def capturing(self):
        return self.graph

    def mark(self):
        self.log.append(("mark", self.copies))
        return self.copies

    def wait(self, event):
        self.log.append(("wait", event))

    def follow(self):
        self.log.append("follow")

    def finish(self, event):
        self.log.append(("finish", event))


def _rows(per_token, layers=(0, 1, 3)):
    shape = (V, D) if per_token is None else (V, per_token, D)
    return {i: torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in layers}


def _stage(kind, per_token=None, capacity=8, at_once=0):
    rows = _rows(per_token)
    layout = RecordLayout(vocab_size=V, layers=tuple(rows), rows_per_token=per_token, width=D, rows=kind)
    records = layout.encode(rows)
    stage = Stage(layout, lambda ids: records[ids], CPU, capacity)
    stage.lane, stage.at_once = Recorder(), at_once
    return stage, layout, records


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8", "float8_e4m3"])
@pytest.mark.parametrize("per_token", [None, 3])
@pytest.mark.parametrize("shape", [(1, 1), (2, 4), (5, 7)])
@pytest.mark.parametrize("at_once", [0, 1 << 30])
def test_layers_get_their_rows(kind, per_token, shape, at_once):
    stage, layout, records = _stage(kind, per_token, at_once=at_once)
    ids = torch.randint(0, V, shape, generator=torch.Generator().manual_seed(3))
    buffers = stage.fetch(ids)
    for layer in layout.layers:
        rows, positions = stage.rows(buffers, layer, torch.float32)
        assert torch.equal(
            rows[positions], layout.decode(records[ids.flatten()], layer, torch.float32).unflatten(0, shape)
        )


def test_each_layer_waits_for_its_own_copy():
    stage, layout, _ = _stage("float32")
    buffers = stage.fetch(torch.tensor([[1, 2]]))
    assert stage.lane.log == ["follow", *[x for n in (1, 2, 3) for x in ("copy", ("mark", n))]]
    stage.rows(buffers, layout.layers[1], torch.float32)
    assert stage.lane.log[-1] == ("wait", 2)


def test_rows_of_a_few_positions_travel_together():
    stage, layout, _ = _stage("float32", at_once=3 * 2 * D * 4)
    buffers = stage.fetch(torch.tensor([[1, 2]]))
    assert stage.lane.log == ["follow", "copy", ("mark", 1)]
    stage.rows(buffers, layout.layers[1], torch.float32)
    assert stage.lane.log[-1] == ("wait", 1)
    stage.fetch(torch.tensor([[1, 2, 3]]))
    assert stage.lane.copies == 1 + 3


def test_what_was_prefetched_is_not_copied_again():
    stage, _, _ = _stage("float32")
    ids = torch.tensor([[4, 5]])
    ahead = stage.prefetch(ids)
    copies = stage.lane.copies
    assert stage.fetch(ids.clone()) is ahead and stage.lane.copies == copies
    assert stage.fetch(torch.tensor([[4, 6]])) is not ahead and stage.lane.copies == 2 * copies


def test_ids_may_be_written_over_once_rows_are_asked_for():
    stage, layout, records = _stage("float32")
    ids = torch.tensor([[3]])
    stage.prefetch(ids)
    stage.wait()
    ids.fill_(7)
    rows, positions = stage.rows(stage.fetch(ids), 3, torch.float32)
    assert torch.equal(rows[positions][0, 0], layout.decode(records[7:8], 3, torch.float32)[0])


def test_a_pass_computes_while_the_next_ones_rows_travel():
    stage, layout, records = _stage("float32")
    now, later = torch.tensor([[1]]), torch.tensor([[2]])
    buffers = stage.fetch(now)
    stage.prefetch(later)
    rows, positions = stage.rows(buffers, 3, torch.float32)
    assert torch.equal(rows[positions][0, 0], layout.decode(records[1:2], 3, torch.float32)[0])


def test_buffers_keep_their_addresses_up_to_their_capacity_and_grow_beyond_it():
    stage, _, _ = _stage("float32", capacity=4)
    before = {stage.fetch(torch.tensor([[i] * 4])).device.data_ptr() for i in range(4)}
    assert len(before) == 2
    grown = stage.fetch(torch.arange(10).view(1, 10))
    assert grown.capacity >= 10 and grown.device.data_ptr() not in before


def test_memory_that_is_given_back_has_been_written_to():
    stage, _, _ = _stage("float32", capacity=2)
    for token in range(2):
        stage.prefetch(torch.tensor([[token]]))
    stage.prefetch(torch.arange(9).view(1, 9))
    assert ("wait", 3) in stage.lane.log
    assert stage.lane.log.index(("wait", 3)) < stage.lane.log.index(("mark", 7))


def test_a_long_pass_beside_a_graph_has_been_written_when_its_memory_is_given_back():
    stage, _, _ = _stage("float32", capacity=2)
    stage._captured = True
    stage.prefetch(torch.arange(5).view(1, 5))
    stage.prefetch(torch.arange(6).view(1, 6))
    assert stage.lane.log.index(("wait", 3)) < stage.lane.log.index(("mark", 4))


def test_a_replay_waits_for_everything():
    stage, _, _ = _stage("float32")
    stage.prefetch(torch.tensor([[3]]))
    stage.wait()
    assert stage.lane.log[-1] == ("wait", 3)


def test_host_memory_is_not_overwritten_while_it_is_copied_from():
    stage, _, _ = _stage("float32")
    for token in range(3):
        stage.prefetch(torch.tensor([[token]]))
    assert stage.lane.log.count(("finish", 3)) == 1
    assert stage.lane.log.index(("finish", 3)) < stage.lane.log.index(("mark", 7))


def test_a_pass_that_is_captured_does_not_wait_and_one_after_it_does():
    stage, _, _ = _stage("float32", capacity=4)
    stage.lane.graph, ids = True, torch.tensor([[5, 6]])
    captured = stage.fetch(ids)
    stage.rows(captured, 1, torch.float32)
    assert stage.lane.log == [] and captured is stage._sets[0]
    stage.lane.graph = False
    stage.rows(stage.fetch(ids), 1, torch.float32)
    assert stage.lane.log[-1] == ("wait", 2)


def test_positions_that_a_graph_has_read_keep_their_address():
    stage, _, _ = _stage("float32", capacity=4)
    stage.lane.graph, ids = True, torch.tensor([[5, 6]])
    _, positions = stage.rows(stage.fetch(ids), 1, torch.float32)
    stage.lane.graph = False
    for token in range(3):
        _, later = stage.rows(stage.fetch(ids + token), 1, torch.float32)
        assert later.data_ptr() == positions.data_ptr() and torch.equal(later, torch.tensor([[0, 1]]))


def test_a_graph_of_more_positions_than_there_is_room_for_is_refused():
    stage, _, _ = _stage("float32", capacity=4)
    stage.lane.graph = True
    with pytest.raises(ConfigError, match=r"a pass of 5 positions, .* have room for 4; accepted: as many"):
        stage.fetch(torch.arange(5).view(1, 5))


def test_a_graphs_buffers_stay_where_they_are():
    stage, _, _ = _stage("float32", capacity=4)
    stage._captured = True
    places = {stage.prefetch(torch.tensor([[i]])).device.data_ptr() for i in range(4)}
    assert len(places) == 1
    longer = stage.prefetch(torch.arange(9).view(1, 9))
    assert longer.device.data_ptr() not in places
    assert {stage.prefetch(torch.tensor([[7]])).device.data_ptr()} == places
