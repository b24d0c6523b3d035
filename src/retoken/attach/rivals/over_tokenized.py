"""A larger input vocabulary: hashed n-grams of two and three tokens are embedded beside the token itself.

After Over-Encoding (Huang et al., Over-Tokenized Transformer, arXiv 2501.16975): the input embedding becomes
E[x] + sum over n = 2, 3 and i = 1 .. k of W_{n,i} E_{n,i}[hash_{n,i}], each of the tables 1 / ((N - 1) k) as
wide as the model, N = 3. One projection of all rows side by side is the same sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from retoken.attach.families import Anatomy
from retoken.attach.rivals.base import Maker, NgramConfig, Rival, RivalHook, enter_with, entered
from retoken.attach.sites import Hook, LayerSite
from retoken.nn import TokenTable


@dataclass(frozen=True, kw_only=True)
class OverTokenizedConfig(NgramConfig):
    """e + W [E_{n,i}[hash_{n,i}]] before the first layer."""

    type: ClassVar[str] = "over_tokenized"
    orders: ClassVar[tuple[int, ...]] = (2, 3)

    hashes: int = 2
    """k: hashes of each order."""
    init_std: float = 0.02
    """Standard deviation of the rows at the start."""

    def table_layers(self, num_layers: int) -> tuple[int, ...]:
        """The first."""
        return (0,)

    def other_params(self, hidden_size: int, num_layers: int) -> int:
        """The projection."""
        return hidden_size**2

    def flops_per_token(self, hidden_size: int, num_layers: int) -> float:
        """Two for each element of the projection, and d for adding."""
        return 2.0 * hidden_size**2 + hidden_size

    def build(self, anatomy: Anatomy, layer: int, make: Maker) -> OverTokenized:
        """The only module, which the first layer carries."""
        return OverTokenized(self.make_table(anatomy, make), anatomy.hidden_size, self.init_scale, make)

    def hooks(self, anatomy: Anatomy, sites: list[LayerSite]) -> list[Hook]:
        """Before the first layer."""
        return [Hook(anatomy.layers[0], AddToEmbedding(sites[0]), True)]


class OverTokenized(Rival):
    """Table [H * rows, D / H], projection [D, D]."""

    def __init__(self, table: TokenTable, hidden_size: int, start: float, make: Maker) -> None:
        super().__init__(table)
        self.start = start
        self.projection = make.parameter(hidden_size, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A projection that keeps sizes, times the start value."""
        nn.init.normal_(self.projection, std=self.start * self.projection.shape[1] ** -0.5)

    def forward(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Embeddings [B, S, D] with rows [B, S, D] projected and added."""
        return hidden + F.linear(rows, self.projection.to(hidden.dtype))


class AddToEmbedding(RivalHook):
    """Hook before the first layer."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, context = entered(args, kwargs)
        return enter_with(self.rival(hidden, self.rows(context, hidden)), args, kwargs)
