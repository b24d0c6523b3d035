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
from retoken.attach.rivals.base import Maker, Rival, RivalConfig, RivalHook, enter_with, entered
from retoken.attach.sites import Hook, LayerSite
from retoken.errors import ConfigError
from retoken.nn import TokenTable
from retoken.nn.index import Head

ORDERS = (2, 3)


@dataclass(frozen=True, kw_only=True)
class OverTokenizedConfig(RivalConfig):
    """e + W [E_{n,i}[hash_{n,i}]] before the first layer."""

    type: ClassVar[str] = "over_tokenized"

    splits: int = 2
    """k: hashes of each order."""
    init_std: float = 0.02
    """Standard deviation of the rows at the start."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if type(self.splits) is not int or self.splits < 1:
            raise ConfigError(f"splits is {self.splits!r}; accepted: an integer from 1")

    def table_layers(self, num_layers: int) -> tuple[int, ...]:
        """The first."""
        return (0,)

    def _shape(self, vocab_size: int, hidden_size: int, num_layers: int) -> tuple[int, int]:
        """(rows of a hash, width of a row)."""
        hashes = len(ORDERS) * self.splits
        if hidden_size % hashes:
            raise ConfigError(f"splits is {self.splits}; accepted: a divisor of {hidden_size} / 2")
        return max(1, round(self.size * num_layers * vocab_size)), hidden_size // hashes

    def table_params(self, vocab_size: int, hidden_size: int, num_layers: int) -> int:
        """Rows of all hashes times their width."""
        return self._shape(vocab_size, hidden_size, num_layers)[0] * hidden_size

    def other_params(self, hidden_size: int, num_layers: int) -> int:
        """The projection."""
        return hidden_size**2

    def flops_per_token(self, hidden_size: int, num_layers: int) -> float:
        """Two for each element of the projection, and d for adding."""
        return 2.0 * hidden_size**2 + hidden_size

    def heads(self, vocab_size: int, hidden_size: int, num_layers: int) -> tuple[Head, ...]:
        """k hashes of bigrams, k of trigrams."""
        rows, _ = self._shape(vocab_size, hidden_size, num_layers)
        kinds = [(order, salt) for order in ORDERS for salt in range(self.splits)]
        return tuple(Head(order, salt, rows, number * rows) for number, (order, salt) in enumerate(kinds))

    def build(self, anatomy: Anatomy, layer: int, make: Maker) -> OverTokenized:
        """The only module, which the first layer carries."""
        rows, width = self._shape(anatomy.vocab_size, anatomy.hidden_size, len(anatomy.layers))
        table = make.table(rows * len(ORDERS) * self.splits, width, self.init_std)
        return OverTokenized(table, anatomy.hidden_size, self.init_scale, make)

    def hooks(self, anatomy: Anatomy, sites: list[LayerSite]) -> list[Hook]:
        """Before the first layer."""
        return [Hook(anatomy.layers[0], AddToEmbedding(sites[0]), True)]


class OverTokenized(Rival):
    """Table [H * rows, D / H], projection [D, D]."""

    def __init__(self, table: TokenTable, hidden_size: int, start: float, make: Maker) -> None:
        super().__init__()
        self.table, self.start = table, start
        self.projection = make.parameter(hidden_size, hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A projection that keeps sizes, times the start value."""
        nn.init.normal_(self.projection, std=self.start * self.projection.shape[1] ** -0.5)

    def forward(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Embeddings [B, S, D] with rows [B, S, H, D / H] projected and added."""
        return hidden + F.linear(rows.flatten(-2), self.projection.to(hidden.dtype))


class AddToEmbedding(RivalHook):
    """Hook before the first layer."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, context = entered(args, kwargs)
        return enter_with(self.rival(hidden, self.rows(context, hidden)), args, kwargs)
