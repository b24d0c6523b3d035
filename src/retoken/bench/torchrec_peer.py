"""TorchRec's row-wise sharded EmbeddingCollection on gloo ranks, for `Crew`, run by a Python that has it.

The same ids as ours, one table a layer, all rows of a token side by side (width: modulators * D), SGD fused
into the backward pass. Deduplication of ids (`use_index_dedup`) needs an operator that fbgemm has on GPUs
only, so there are two cases: ids as they are, and ids made unique before TorchRec sees them, as ours are.
"""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F


def sharded(vocab, width, layers):
    """A collection of `layers` tables [vocab, width], divided by row over all ranks."""
    from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
    from torchrec.distributed.types import ShardingEnv
    from torchrec.modules.embedding_configs import EmbeddingConfig
    from torchrec.modules.embedding_modules import EmbeddingCollection
    from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

    tables = [
        EmbeddingConfig(
            name=f"t{layer}", embedding_dim=width, num_embeddings=vocab, feature_names=[f"f{layer}"]
        )
        for layer in range(layers)
    ]
    whole = EmbeddingCollection(device=torch.device("meta"), tables=tables)
    apply_optimizer_in_backward(torch.optim.SGD, whole.parameters(), {"lr": 1e-4})
    world = dist.get_world_size()
    plan = construct_module_sharding_plan(
        whole,
        per_param_sharding={table.name: row_wise(compute_kernel="fused") for table in tables},
        sharder=EmbeddingCollectionSharder(),
        world_size=world,
        local_size=world,
        device_type="cpu",
    )
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    return ShardedEmbeddingCollection(whole, plan, env, {}, device=torch.device("cpu"))


class Peer:
    """Cases by name: `retoken` or `mort`, and `as they are` or `unique`."""

    def __init__(self, options):
        rank, folder = dist.get_rank(), Path(options["folder"])
        self.ids = torch.from_numpy(np.load(folder / "ids.npy")[rank])
        self.chosen = torch.from_numpy(np.load(folder / "chosen.npy")[rank])
        _, self.layers, tokens, top_k = self.chosen.shape
        self.width, self.modulators = options["width"], options["modulators"]
        self.weights = torch.full((tokens, top_k), 1 / top_k)
        self.gradient = torch.ones(tokens, self.width)
        widths = {"retoken": self.width, "mort": self.width * self.modulators}
        self.tables = {
            kind: sharded(options["vocab_size"], widths[kind], self.layers) for kind in options["kinds"]
        }
        self.next = 0

    def step(self, kind, unique):
        """Forward and backward of one batch."""
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        batch = self.next % len(self.ids)
        self.next += 1
        ids, at = self.ids[batch], torch.arange(self.ids.shape[1])
        if unique:
            ids, at = ids.unique(return_inverse=True)
        asked = KeyedJaggedTensor.from_lengths_sync(
            [f"f{layer}" for layer in range(self.layers)],
            ids.repeat(self.layers),
            torch.ones(len(ids) * self.layers, dtype=torch.int32),
        )
        found = self.tables[kind](asked)
        outs = [
            self.use(found[f"f{layer}"].values(), at, self.chosen[batch, layer], kind)
            for layer in range(self.layers)
        ]
        torch.autograd.backward(outs, [self.gradient] * self.layers)

    def use(self, rows, at, chosen, kind):
        """Each token's row, or the mixture of those it chose: as ours are used."""
        if kind == "retoken":
            return F.embedding(at, rows)
        index = at.unsqueeze(1) * self.modulators + chosen
        weights = self.weights.clone().requires_grad_()
        return F.embedding_bag(index, rows.view(-1, self.width), per_sample_weights=weights, mode="sum")

    def turn(self, name, steps):
        """Seconds of the wall clock and of this process's CPUs."""
        kind, how = name.split(" ", 1)
        dist.barrier()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(steps):
            self.step(kind, how == "unique")
        return {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def main():
    """Join the others, build, answer turns until the input ends."""
    warnings.filterwarnings("ignore")
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    try:
        import torchrec

        dist.init_process_group("gloo")
        peer = Peer(options)
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        print(json.dumps({"failed": f"{type(error).__name__}: {said}"}), flush=True)
        return
    about = {"torch": torch.__version__, "torchrec": torchrec.__version__}
    print(json.dumps({"ready": about}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(peer.turn(asked["case"], asked["steps"])), flush=True)


if __name__ == "__main__":
    main()
