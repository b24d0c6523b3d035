"""Tables divided among ranks, as a source of rows."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from retoken.errors import AttachError, ConfigError
from retoken.nn import Fetch, TokenTable
from retoken.optim import RowOrigin
from retoken.parallel.combine import Combine
from retoken.parallel.each import EachFetch
from retoken.parallel.early import EarlyFetch
from retoken.parallel.layout import Layout
from retoken.parallel.mesh import TableMesh
from retoken.parallel.mixed import MixedFetch
from retoken.parallel.request import open_request
from retoken.parallel.routed import RoutedFetch
from retoken.parallel.traffic import Traffic
from retoken.rows.local import BeforeRead

ExchangeName = Literal["early", "routed", "mixed"]
FETCHES = {"early": EarlyFetch, "routed": RoutedFetch, "mixed": MixedFetch}


class ShardedTable(TokenTable):
    """This rank's part of a table: `weight` is [V_s, D] or [V_s, E_s, D]."""

    def __init__(self, whole: TokenTable, layout: Layout, rank: int) -> None:
        nn.Module.__init__(self)
        self.init_std, self.layout, self.rank = whole.init_std, layout, rank
        part = layout.take(whole.weight.detach(), rank)
        self.weight = nn.Parameter(part, requires_grad=whole.weight.requires_grad)

    @property
    def vocab_size(self) -> int:
        """V, over all ranks."""
        return self.layout.vocab_size

    def _resident(self, ids: Tensor) -> Fetch:
        raise AttachError(
            f"rows are divided among {self.layout.ranks} ranks, and this lookup is not of a forward pass; "
            "accepted: a forward pass on every rank, or the exported model"
        )

    def resize(self, vocab_size: int) -> None:
        """Refused: resize before sharding.

        Raises:
            AttachError: another size than it has.
        """
        if vocab_size != self.vocab_size:
            raise AttachError(f"a sharded table has {self.vocab_size} tokens; resize it before it is sharded")


class ShardedRows:
    """Rows of a pass come from the ranks that own them; gradients go back (App. B).

    Forward passes are collectives of the emp group: every rank runs as many. Tables' parameters are not
    managed by DDP or FSDP (`retoken.parallel.ignored_parameters`).
    """

    def __init__(
        self,
        stack: nn.Module,
        mesh: TableMesh,
        layout: Layout,
        exchange: ExchangeName = "early",
        distinct: bool = True,
    ) -> None:
        """`distinct` False: every token's rows are asked for one by one; to see what asking once saves."""
        if exchange not in get_args(ExchangeName):
            raise ConfigError(f"exchange is {exchange!r}; accepted: {', '.join(get_args(ExchangeName))}")
        if exchange != "early" and layout.per_token == 1:
            raise ConfigError(f"exchange is {exchange!r} with one row a token; accepted here: early")
        self.stack, self.mesh, self.layout, self.exchange = stack, mesh, layout, exchange
        self.distinct = distinct
        self.traffic = Traffic(mesh.emp)
        self.combine = Combine(self.weights, mesh, self.traffic)
        self.before_read: list[BeforeRead] = []

    def weights(self) -> dict[int, nn.Parameter]:
        """{layer: this rank's part of its table}."""
        layers: nn.ModuleDict = self.stack.layers  # pyright: ignore
        return {int(layer): module.table.weight for layer, module in layers.items()}  # pyright: ignore

    def origins(self) -> dict[nn.Parameter, RowOrigin]:
        """Where the rows of each part are in its whole table, by token id and column."""
        v, e = self.layout.place(self.mesh.emp_rank)
        first = self.layout.modulators(e).start
        return {
            weight: RowOrigin(first=v, stride=self.layout.vocab_shards, column=first * weight.shape[-1])
            for weight in self.weights().values()
        }

    @torch.compiler.disable
    def fetch(self, ids: Tensor) -> Fetch:
        """Ask for the rows of ids [B, S]; a collective of the emp group, also where B or S is 0."""
        weights = self.weights()
        if not self.distinct:
            return EachFetch(weights, ids, self.layout, self.combine, self._settle)
        request = open_request(ids, self.layout, self.traffic)
        for weight in weights.values():
            self._settle(weight, request.touched_U)
        return FETCHES[self.exchange](weights, request, self.combine)

    def _settle(self, weight: nn.Parameter, touched_U: Tensor) -> None:
        for act in self.before_read:
            act(weight, touched_U)

    def prefetch(self, ids: Tensor) -> None:
        """Rows are asked for when a pass starts, for all its layers."""

    def sum_over_shards(self, value: Tensor) -> Tensor:
        """A number of this rank's part, summed over the parts of one copy: the squared norm of a gradient."""
        value = value.clone()
        torch.distributed.all_reduce(value, group=self.mesh.emp)
        return value
