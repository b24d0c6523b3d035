"""Ids of earlier passes by slots, against whole sequences, where the engine's blocks are not what it says."""

from types import SimpleNamespace

import pytest
import torch
from vllm.config import VllmConfig
from vllm.forward_context import set_forward_context

import retoken
from retoken.engines.vllm.earlier import EarlierTokens
from retoken.errors import RetokenError
from retoken.nn import index_for

VOCAB, BLOCKS = 50, 40
CONFIG = retoken.MoRTConfig.by_token_and_bigram(3)
INDEX = index_for(CONFIG, VOCAB)


class Engine:
    """Requests in blocks of a size, in passes of some tokens each, as attention is told of them."""

    def __init__(self, block_size: int, said: int) -> None:
        self.block_size, self.said = block_size, said
        free = (torch.randperm(BLOCKS - 1, generator=torch.Generator().manual_seed(0)) + 1).tolist()
        self.table = torch.tensor([[free.pop() for _ in range(6)] for _ in range(3)])
        self.done = [0, 0, 0]

    def config(self, **changes):
        cache = SimpleNamespace(block_size=self.said, num_gpu_blocks=BLOCKS)
        parallel = SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1)
        model = SimpleNamespace(use_mla=False)
        given = {"cache_config": cache, "parallel_config": parallel, "model_config": model}
        return SimpleNamespace(**{**given, "kv_transfer_config": None, **changes})

    def run(self, earlier, tokens, counts, padding=0):
        """A pass over the next `counts` tokens of each request; the rows of its positions."""
        ids, slots = [], []
        for request, count in enumerate(counts):
            for position in range(self.done[request], self.done[request] + count):
                block = int(self.table[request, position // self.block_size])
                ids.append(int(tokens[request, position]))
                slots.append(block * self.block_size + position % self.block_size)
            self.done[request] += count
        metadata = SimpleNamespace(
            block_table=self.table.int(),
            query_start_loc=torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()]).int(),
            seq_lens=torch.tensor(self.done).int(),
            slot_mapping=torch.tensor(slots + [-1] * padding),
        )
        with set_forward_context({"layer": metadata}, VllmConfig()):
            rows = earlier.rows_of(torch.tensor(ids + [0] * padding))
        return rows[: len(ids)].split(counts)

    def dummy(self, earlier):
        """What the engine warms up with."""
        metadata = SimpleNamespace(
            block_table=torch.zeros(4, 6).int(),
            query_start_loc=torch.arange(5).int(),
            seq_lens=torch.ones(4).int(),
            slot_mapping=torch.full((4,), -1),
        )
        for given in (None, {"layer": metadata}):
            with set_forward_context(given, VllmConfig()):
                assert earlier.rows_of(torch.ones(4, dtype=torch.int64)).shape == (4, 2)


@pytest.mark.parametrize(("block_size", "said"), [(4, 4), (16, 32), (32, 16), (8, 128)])
def test_passes_in_parts_read_what_whole_sequences_do(block_size, said):
    engine = Engine(block_size, said)
    earlier = EarlierTokens(INDEX, engine.config())
    tokens = torch.randint(0, VOCAB, (3, 24), generator=torch.Generator().manual_seed(1))
    engine.dummy(earlier)
    found = [
        engine.run(earlier, tokens, counts, pad)
        for counts, pad in (([5, 0, 3], 0), ([1, 7, 1], 2), ([9, 1, 1], 0), ([1, 1, 12], 3), ([8, 15, 7], 0))
    ]
    for request, rows in enumerate(zip(*found, strict=True)):
        assert torch.equal(torch.cat(rows), INDEX(tokens[request : request + 1], None)[0])


def test_slots_in_no_known_blocks_are_refused():
    engine = Engine(5, 16)
    earlier = EarlierTokens(INDEX, engine.config())
    with pytest.raises(RetokenError, match="in blocks of 16 or of 8 to 2048"):
        engine.run(earlier, torch.zeros(3, 24).long(), [7, 3, 1])


def test_metadata_without_a_block_table_is_refused():
    earlier = EarlierTokens(INDEX, Engine(16, 16).config())
    with (
        set_forward_context({"layer": SimpleNamespace(slot_mapping=torch.zeros(1))}, VllmConfig()),
        pytest.raises(RetokenError, match="needed: one with block_table, query_start_loc"),
    ):
        earlier.rows_of(torch.ones(1, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kv_transfer_config": object()}, "kv_transfer_config is set"),
        (
            {"parallel_config": SimpleNamespace(decode_context_parallel_size=2)},
            "decode_context_parallel_size is 2",
        ),
        (
            {
                "parallel_config": SimpleNamespace(
                    decode_context_parallel_size=1, prefill_context_parallel_size=2
                )
            },
            "prefill_context_parallel_size is 2",
        ),
        ({"model_config": SimpleNamespace(use_mla=True)}, "latent attention"),
    ],
)
def test_keys_and_values_without_their_ids_are_refused(changes, said):
    with pytest.raises(RetokenError, match=said):
        EarlierTokens(INDEX, Engine(16, 16).config(**changes))
