"""FBGEMM's table-batched embedding for inference on a CPU, for `PeerProcess`, run by a Python that has it.

`IntNBitTableBatchedEmbeddingBagsCodegen`: rows of one token each (gather), or the weighted sum of a token's
chosen rows (mix). It has no bfloat16; its float16 stands in, and int8 has a float16 scale and bias a row. Its
indices are given ready-made, so their arithmetic costs it nothing. Results are held to torch's here.
"""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

import json
import sys
import time

import torch

TYPES = {"float32": "FP32", "bfloat16": "FP16", "int8": "INT8"}


def table_of(options):
    """The module, its rows drawn, and the same rows in float32, the first 1024 [1024, D]."""
    from fbgemm_gpu.split_embedding_configs import SparseType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_inference import (
        IntNBitTableBatchedEmbeddingBagsCodegen,
    )

    kind, rows = SparseType[TYPES[options["rows"]]], options["vocab"] * options["experts"]
    table = IntNBitTableBatchedEmbeddingBagsCodegen(
        [("table", rows, options["width"], kind, EmbeddingLocation.HOST)],
        device="cpu",
        pooling_mode=PoolingMode.SUM if options["operation"] == "mix" else PoolingMode.NONE,
        output_dtype=SparseType.FP32 if options["rows"] == "float32" else SparseType.FP16,
    )
    table.fill_random_weights()
    stored, scales = table.split_embedding_weights()[0]
    wide = torch.randn(1024, options["width"])
    if kind is SparseType.INT8:
        stored.random_(0, 256)
        scales.view(torch.float16)[:] = torch.tensor([1 / 128, -1.0])
        wide = stored[:1024, : options["width"]].float() / 128 - 1
    else:
        numbers = stored.view(torch.float32 if kind is SparseType.FP32 else torch.float16)
        for start in range(0, rows, 1024):
            numbers[start : start + 1024] = wide[: rows - start]
        wide = numbers[:1024].float()
    return table, wide


def arguments(options, ids, tokens):
    """What the module takes for ids [T]: indices, offsets and, for a mixture, weights."""
    if options["operation"] != "mix":
        return ids.int(), torch.arange(tokens + 1).int()
    chosen = torch.tensor(options["chosen"][str(tokens)])
    index = (ids.unsqueeze(-1) * options["experts"] + chosen).flatten().int()
    bags = torch.arange(tokens + 1) * chosen.shape[1]
    return index, bags.int(), torch.tensor(options["weights"][str(tokens)]).flatten()


def check(options, table, wide, tokens):
    """Its result for the first tokens is torch's."""
    limit = max(1, 1024 // options["experts"])
    index, *rest = arguments(options, torch.arange(tokens) % min(limit, options["vocab"]), tokens)
    found, rows = table(index, *rest).float(), wide[index.long()]
    if options["operation"] == "mix":
        rows = (rows * rest[1].unsqueeze(-1)).view(tokens, -1, rows.shape[-1]).sum(1)
    torch.testing.assert_close(found, rows, rtol=4e-3, atol=4e-3)


class Turns:
    """Calls on other ids each, in order."""

    def __init__(self, options, table, kind, tokens):
        self.options, self.table, self.tokens = options, table, tokens
        self.ids, self.calls, self.at = torch.tensor(options["ids"][kind]), options["calls"][str(tokens)], 0

    def next(self):
        """Of the next ids; from the start again when there are too few left."""
        if self.at + self.tokens > len(self.ids):
            self.at = 0
        self.at += self.tokens
        return arguments(self.options, self.ids[self.at - self.tokens : self.at], self.tokens)

    def turn(self):
        """Seconds of a call."""
        mine = [self.next() for _ in range(self.calls)]
        started = time.perf_counter()
        for given in mine:
            self.table(*given)
        return (time.perf_counter() - started) / self.calls


def prepared(options):
    """{tokens and ids' kind: turns}."""
    table, wide = table_of(options)
    for tokens in options["tokens"]:
        check(options, table, wide, tokens)
    return {
        f"{tokens} {kind}": Turns(options, table, kind, tokens)
        for tokens in options["tokens"]
        for kind in options["ids"]
    }


def main():
    """Answer turns until the input ends."""
    options = json.loads(sys.stdin.readline())
    torch.set_num_threads(options["threads"])
    try:
        import fbgemm_gpu

        turns = prepared(options)
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        print(json.dumps({"failed": said}), flush=True)
        return
    versions = {"torch": torch.__version__, "fbgemm_gpu": getattr(fbgemm_gpu, "__version__", "?")}
    print(json.dumps({"ready": versions}), flush=True)
    with torch.no_grad():
        for line in sys.stdin:
            print(json.dumps({"seconds": turns[line.strip()].turn()}), flush=True)


if __name__ == "__main__":
    main()
