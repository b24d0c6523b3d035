"""Several optimizers that are one to a training loop: each moves its own groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retoken.optim.row_base import RowOptimizer
from retoken.optim.state import check_groups


class ChainedOptimizer(torch.optim.Optimizer):
    """Steps each part in turn. Groups are the parts' own, in a row; state is one mapping that all share."""

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        """`parts` move different parameters, and hand over their state."""
        self.parts = tuple(parts)
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._join()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Groups and state of another one with the same groups; each part takes its own."""
        groups, states = list(state_dict["param_groups"]), state_dict["state"]
        check_groups(self, groups)
        for part in self.parts:
            own, groups = groups[: len(part.param_groups)], groups[len(part.param_groups) :]
            ids = [index for group in own for index in group["params"]]
            part.load_state_dict({"param_groups": own, "state": {i: states[i] for i in ids if i in states}})
        self._join()

    def _join(self) -> None:
        """The parts' groups, and one mapping for all their state."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        shared: defaultdict[Tensor, Any] = defaultdict(dict)
        for part in self.parts:
            shared.update(part.state)
            part.state = shared
        self.state = shared

    def settle(self, parameter: nn.Parameter, ids: Tensor | None = None) -> None:
        """Decay that rows of a table wait for (`RowOptimizer.settle`)."""
        for part in self.parts:
            if isinstance(part, RowOptimizer):
                part.settle(parameter, ids)

    def settle_all(self) -> None:
        """The same for every row of every table."""
        for part in self.parts:
            if isinstance(part, RowOptimizer):
                part.settle_all()
