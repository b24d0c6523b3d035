"""FBGEMM's table-batched embedding (TBE) on a CPU, for `PeerProcess`, run by a Python that has it.

It fuses the update of touched rows into the backward pass of the lookup. On a CPU it has no Adam: exact
row-wise Adagrad (one state a row) and exact Adagrad (one a number) are what there is. A turn is one backward
pass, timed alone.
"""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

import json
import sys
import time

import torch


def build(kind, vocab, width, ids, steps):
    """A turn: seconds of a backward pass of unique ids, each once, over some of them."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    table = SplitTableBatchedEmbeddingBagsCodegen(
        [(vocab, width, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType(kind),
        learning_rate=1e-3,
        pooling_mode=PoolingMode.NONE,
    )
    offsets = torch.arange(len(ids[0]) + 1)
    gradient = torch.randn(len(ids[0]), width)

    def turn():
        seconds = 0.0
        for step in range(steps):
            out = table(ids[step % len(ids)], offsets)
            started = time.perf_counter()
            out.backward(gradient)
            seconds += time.perf_counter() - started
        return seconds / steps

    turn()
    return turn


def main():
    """Answer turns until the input ends."""
    options = json.loads(sys.stdin.readline())
    torch.set_num_threads(options["threads"])
    try:
        import fbgemm_gpu

        turns = {
            f"{kind} {vocab}": build(
                kind, vocab, options["width"], [torch.tensor(x) for x in ids], options["steps"]
            )
            for vocab, ids in options["ids"]
            for kind in options["kinds"]
        }
    except Exception as error:
        print(
            json.dumps({"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}),
            flush=True,
        )
        return
    versions = {"torch": torch.__version__, "fbgemm_gpu": getattr(fbgemm_gpu, "__version__", "?")}
    print(json.dumps({"ready": versions}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": turns[line.strip()]()}), flush=True)


if __name__ == "__main__":
    main()
