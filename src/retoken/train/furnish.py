"""Where a run's tables live and how their rows travel: the source its model asks."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from retoken.config import ModulatorConfig, MoRTConfig
from retoken.data.tokens import TokenStore
from retoken.nn import TableFactory, TokenTable, index_for
from retoken.parallel import Layout, ShardedRows, TableMesh, open_mesh, shard_tables, sharded
from retoken.plan import Batch, Choice, Tables, choose
from retoken.plan.measured import of_lookups
from retoken.rows import HostRows, LocalRows, train_by_rows, train_from_host
from retoken.train.config import TrainConfig
from retoken.train.tables import check_fits, store_as
from retoken.train.world import World

Source = LocalRows | ShardedRows


class Furnisher:
    """Decides where tables live when it sees the backbone, has them made there, gives them their source."""

    def __init__(self, config: TrainConfig, store: TokenStore, world: World) -> None:
        """
        Raises:
            ConfigError: The table options don't fit the modulator or the number of processes.
        """
        check_fits(config.tables, config.attached, world.size)
        self.config, self.store, self.world = config, store, world
        self.said = "no tables"
        """One line for people: what was decided."""
        self._divided: tuple[TableMesh, Layout, Choice] | None = None

    def table_for(self, backbone: PreTrainedModel) -> TableFactory:
        """Makes the tables of this backbone, or this process's part of them; a collective."""
        modulator, options = self.config.attached, self.config.tables
        if modulator is None or self.world.size == 1 or options.dense:
            return TokenTable
        choice = self._choice(backbone, modulator)
        layout = Layout(
            vocab_size=modulator.table_rows(_vocab_size(backbone)),
            per_token=modulator.rows_per_token,
            vocab_shards=choice.grid.vocab_shards,
            modulator_shards=choice.grid.modulator_shards,
        )
        mesh = open_mesh(self.world.device.type, options.ranks, self.world.timeout)
        self._divided = mesh, layout, choice
        return sharded(layout, mesh.emp_rank)

    def furnish(self, model: PreTrainedModel) -> Source | None:
        """The source of a model's rows, its tables still in host memory; None: dense, as any parameter."""
        options = self.config.tables
        if self.config.attached is None:
            return None
        stack: Any = model.retoken
        store_as(model, options.stored)
        if self._divided is not None:
            mesh, layout, choice = self._divided
            self.said = f"tables divided: {choice}"
            return shard_tables(stack, mesh, layout, choice.option)  # pyright: ignore
        if options.memory == "host":
            self.said = "tables in host memory, rows copied ahead"
            return train_from_host(stack, self.world.device)
        if options.optimizer == "adamw":
            self.said = "tables dense" + (", a copy in each process" if self.world.size > 1 else "")
            return None
        self.said = "tables trained by the rows that are touched"
        return train_by_rows(stack)

    def _choice(self, backbone: PreTrainedModel, modulator: ModulatorConfig) -> Choice:
        config, text = self.config, backbone.config.get_text_config()
        balances = isinstance(modulator, MoRTConfig) and modulator.balance_coef > 0
        balances = balances and config.balance_over == "batch"
        share = self.world.share_of(config.batch_size)
        tables = Tables.of(
            modulator,
            vocab_size=_vocab_size(backbone),
            hidden_size=text.hidden_size,
            num_layers=text.num_hidden_layers,
            row_bytes=torch.finfo(config.tables.stored).bits // 8,
        )
        index = index_for(modulator, _vocab_size(backbone))
        batch = Batch(
            sequences=config.batch_size,
            context_length=config.context_length,
            ranks=self.world.size,
            micro_sequences=min(config.micro_batch_size, share),
        )
        return choose(
            tables,
            batch,
            of_lookups(self.store, index, tables.vocab_size, config.context_length),
            emp=config.tables.ranks,
            layout=config.tables.layout,
            option=config.tables.exchange,
            forwards=2 if balances and batch.micro_batches > 1 else 1,
            recomputed=config.activation_checkpointing,
        )


def _vocab_size(backbone: PreTrainedModel) -> int:
    return backbone.get_input_embeddings().num_embeddings  # pyright: ignore


def follow(source: Source, optimizer: torch.optim.Optimizer) -> None:
    """Tie rows to their optimizer: decay that waited reaches a row before it is read; copies are renewed."""
    settle = getattr(optimizer, "settle", None)
    if settle is not None and any(g["weight_decay"] for g in optimizer.param_groups if g["name"] == "tables"):
        source.before_read.append(settle)
    if isinstance(source, HostRows):
        source.follow(optimizer)
