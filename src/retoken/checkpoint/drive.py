"""Saving and loading chunks through torch.distributed.checkpoint; one process does without a group."""

from __future__ import annotations

from typing import Any

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from retoken.checkpoint.chunks import Chunk
from retoken.checkpoint.peers import Peers
from retoken.checkpoint.storage import ChunkLoadPlanner, ChunkSavePlanner, ShardReader, ShardWriter


def save_chunks(chunks: dict[str, Chunk], writer: ShardWriter, peers: Peers) -> None:
    """Write every process's chunks; a collective. What fails in any process is raised in all."""
    planner, values = ChunkSavePlanner(), dict[str, Any](chunks)
    if peers.size == 1:
        planner.set_up_planner(values, is_coordinator=True)
        writer.set_up_storage_writer(True)
        plans, metadata = planner.create_global_plan([planner.create_local_plan()])
        plan = planner.finish_plan(writer.prepare_global_plan(plans)[0])
        writer.finish(metadata, [writer.write_data(plan, planner).value()])
        return
    try:
        save(values, storage_writer=writer, planner=planner, process_group=peers.group)
    except CheckpointException as error:
        raise _cause_of(error) from error


def load_chunks(chunks: dict[str, Chunk], reader: ShardReader, peers: Peers) -> None:
    """Fill every process's chunks; a collective. What fails in any process is raised in all."""
    planner, values = ChunkLoadPlanner(), dict[str, Any](chunks)
    if peers.size == 1:
        planner.set_up_planner(values, reader.read_metadata(), True)
        reader.read_data(planner.create_local_plan(), planner)
        return
    try:
        load(values, storage_reader=reader, planner=planner, process_group=peers.group)
    except CheckpointException as error:
        raise _cause_of(error) from error


def _cause_of(error: CheckpointException) -> BaseException:
    """The failure that says what happened: a disk's, before one that followed from it elsewhere."""
    causes: list[Any] = [failure[0] for _, failure in sorted(error.failures.items())]
    return next((cause for cause in causes if isinstance(cause, OSError)), causes[0])
