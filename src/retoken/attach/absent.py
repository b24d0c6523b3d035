"""Tables that are not there: a model is built around them, and its rows come from elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retoken.errors import AttachError
from retoken.nn import Fetched, TokenTable

ABSENT = "absent"
"""In an attached model's field, in memory only: build it without tables. It never gets into a file."""
ROWS_FILE = "rows_file"
"""In that field, in config.json: the packed file beside it that holds the rows."""
ROWS_FINGERPRINT = "rows_fingerprint"
"""In that field: the fingerprint of that file."""
TABLE_KEYS = r"^retoken\.layers\.\d+\.table"


class AbsentTable(TokenTable):
    """The shape of a table and nothing else. Rows that were fetched for it are used, none are made up."""

    def __init__(
        self, shape: tuple[int, ...], init_std: float, device: torch.device | None, dtype: torch.dtype | None
    ) -> None:
        nn.Module.__init__(self)
        self.shape, self.init_std = shape, init_std

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """D."""
        return self.shape[-1]

    def reset_parameters(self) -> None:
        """There are none."""

    def rows_of(self, ids: Tensor, fetched: Fetched | None = None) -> Fetched:
        """The rows of ids [...], out of `fetched`.

        Raises:
            AttachError: none were fetched.
        """
        if fetched is None:
            raise AttachError(
                "the model was built without its tables, whose rows lie in a file of their own; accepted: "
                "retoken.load(folder), which lets it read them"
            )
        return fetched

    def resize(self, vocab_size: int) -> None:
        """Refused where it would change anything.

        Raises:
            AttachError: there is nothing to resize.
        """
        if vocab_size != self.vocab_size:
            raise AttachError(f"absent tables have {self.vocab_size} tokens not {vocab_size}")

    def extra_repr(self) -> str:
        """Shape, for print(model)."""
        return f"{tuple(self.shape)}, absent"


def without_tables(written: Any) -> bool:
    """Whether a model whose config has this field is built without tables."""
    return isinstance(written, dict) and (written.get(ABSENT) is True or ROWS_FILE in written)
