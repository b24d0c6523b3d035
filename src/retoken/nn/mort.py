"""MoRT (JTok-M): a routed mixture of a token's rows, added to the residual stream (Eq. 3-6)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from retoken.config import MoRTConfig
from retoken.nn.kernels import Kernels
from retoken.nn.landing import Landing, Mixture
from retoken.nn.modulator import Modulator
from retoken.nn.table import Fetched, TableFactory, TokenTable
from retoken.ops import Routing, fused
from retoken.ops.norm import norm_gain


class Router(nn.Module):
    """R of Eq. 3: `weight` [E, D], its transpose."""

    def __init__(
        self, num_modulators: int, hidden_size: int, device: torch.device | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_modulators, hidden_size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 0.02), small enough that every modulator starts with a like weight."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, hidden: Tensor, top_k: int, kernels: Kernels) -> Routing:
        """The choice for hidden states [..., D] (Eq. 3)."""
        return kernels.route(hidden, self.weight, top_k)


class MoRT(Modulator):
    """r = 1 / sqrt(2 N_l) * s * Norm(sum of w_i E_i[x] over the K best i) (Eq. 3-5). Table [V, E, D]."""

    def __init__(
        self,
        config: MoRTConfig,
        vocab_size: int,
        hidden_size: int,
        num_layers: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        table: TableFactory = TokenTable,
    ) -> None:
        super().__init__(config, (vocab_size, config.num_modulators, hidden_size), device, dtype, table)
        self.top_k = config.top_k
        self.gain = norm_gain(config.norm, hidden_size) / math.sqrt(2 * num_layers)
        self.router = Router(config.num_modulators, hidden_size, device, dtype)

    def ready(self, rows: Fetched) -> Choice | None:
        """The choice among these rows, all but a pass put together; None: no kernel can read them."""
        return choice(self.kernels, rows, self.router, self.top_k, self.scale, self.gain, self.eps)

    def forward(self, hidden: Tensor, ids: Tensor, fetched: Fetched | None = None) -> tuple[Landing, Routing]:
        """The residual [B, S, D] and the choice, from what the router reads [B, S, D] (Eq. 3-5)."""
        rows = self.rows_of(ids, fetched)
        if fused.serves(hidden) and (ready := self.ready(rows)):
            return ready(hidden)
        routing = self.router(hidden, self.top_k, self.kernels)
        return self.kernels.residual(rows, routing, self.scale, self.gain, self.eps), routing


class Choice:
    """Chooses now (Eq. 3), so that rows can be on their way; they are mixed where they land (Eq. 4-6)."""

    __slots__ = ("mix", "route")

    def __init__(self, route: fused.Route, mix: fused.Mix) -> None:
        self.route, self.mix = route, mix

    def __call__(self, hidden: Tensor, room: fused.Room | None = None) -> tuple[Mixture, Routing]:
        """The residual to be, and the choice, for hidden states [B, S, D].

        Args:
            hidden: as said.
            room: of a pass over other records; None: of those it was made ready with.
        """
        routed, near = self.route(hidden, room), self.mix.near
        if near.ask is not None:
            near.ask(near, near.slots if room is None else room.places.slots, routed.routing.chosen_TK)
        return Mixture(self.mix, routed, room), routed.routing


def choice(
    kernels: Kernels,
    rows: Fetched,
    router: Router,
    top_k: int,
    scale: Tensor | None,
    gain: float,
    eps: float,
) -> Choice | None:
    """A layer's choice among these rows; None: no kernel can read them."""
    near = kernels.near(rows, router.weight, scale)
    return near and Choice(fused.Route(router.weight, top_k), fused.Mix(near, scale, gain, eps))
