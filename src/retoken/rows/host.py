"""Tables in host memory while the backbone computes elsewhere: the next pass's rows are copied ahead."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from retoken.nn import ModulatorStack, TokenTable
from retoken.rows.gradient import FetchRows
from retoken.rows.local import Arrived, LocalRows


class HostTable(TokenTable):
    """A table that stays in host memory when its model moves."""

    def __init__(self, table: TokenTable) -> None:
        nn.Module.__init__(self)
        self.init_std = table.init_std
        self.weight = nn.Parameter(table.weight.detach().cpu(), requires_grad=table.weight.requires_grad)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HostTable:
        """Takes a new type from `model.to(...)`, never a new place."""
        dtype = fn(self.weight.detach()[:0]).dtype
        if dtype != self.weight.dtype:
            self.weight.data = self.weight.data.to(dtype)
        return self


class Staging:
    """Host memory rows pass through on their way to the device, pinned where that speeds the copy up."""

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self._buffers: dict[int, Tensor] = {}
        self.event: Any = None
        """Behind the last copies out of it."""

    def rows(self, layer: int, count: int, like: Tensor) -> Tensor:
        """[count, ...] of a layer's buffer; grows, is never given back."""
        held = self._buffers.get(layer)
        if held is None or held.shape[0] < count or held.dtype != like.dtype:
            shape = (count + count // 4, *like.shape[1:])
            held = torch.empty(shape, dtype=like.dtype, pin_memory=self._pinned)
            self._buffers[layer] = held
        return held[:count]


class Ahead:
    """The rows of a pass that has not started: gathered by another thread, on their way to the device."""

    def __init__(self, ids: Tensor, staging: Staging) -> None:
        self.ids, self.staging = ids, staging
        self.ids_R, self.positions = torch.unique(ids, return_inverse=True)
        self.rows: dict[int, Tensor] = {}
        self.work: Future[None] | None = None
        self.event: Any = None

    def arrived(self) -> dict[int, Tensor]:
        """The rows, behind whatever the device still has to do for them."""
        assert self.work is not None
        self.work.result()
        if self.event is not None:
            torch.cuda.current_stream().wait_event(self.event)
            for rows in self.rows.values():
                rows.record_stream(torch.cuda.current_stream())
        return self.rows


class HostRows(LocalRows):
    """Rows come from host memory; those of the next pass while this one computes.

    Two staging areas take turns. A row that an optimizer step changes after it was copied ahead is copied
    once more (`follow` the optimizer), so that training gives what resident tables give.
    """

    def __init__(self, stack: nn.Module, device: torch.device) -> None:
        super().__init__(stack)
        self.device = device
        self._forget()

    def _forget(self) -> None:
        self._ahead: Ahead | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._staging = [Staging(self.device), Staging(self.device)]
        self._stream: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """A copy of the model has nothing on its way."""
        ours = ("_ahead", "_pool", "_staging", "_stream")
        return {key: value for key, value in self.__dict__.items() if key not in ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Have rows that this optimizer changes copied again where they were copied ahead."""
        optimizer.register_step_post_hook(lambda *_: self.patch())

    def prefetch(self, ids: Tensor) -> None:
        """Start copying the rows of ids [B, S], which the pass after this one reads.

        Not where rows are to be settled when they are read: they might be settled before a step and read
        after it.
        """
        if self.before_read:
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="retoken-rows")
        self._staging.reverse()
        ahead = Ahead(ids, self._staging[0])
        ahead.work = self._pool.submit(self._copy, ahead)
        self._ahead = ahead

    @torch.compiler.disable
    def fetch(self, ids: Tensor) -> Arrived | None:
        """The rows of ids [B, S]; copied ahead where `prefetch` was told of them."""
        if not torch.is_grad_enabled():
            self.settle(ids.unique() if self.before_read else ids)
            return None
        ahead, self._ahead = self._ahead, None
        if ahead is not None and not (ahead.ids is ids or torch.equal(ahead.ids, ids)):
            ahead.arrived()  # a wrong guess; its memory is needed
            ahead = None
        if ahead is None:
            ahead = Ahead(ids, self._staging[0])
            ahead.work = Future()
            ahead.work.set_result(self._copy(ahead))
        rows = ahead.arrived()
        home = ahead.ids_R.cpu()
        tables = self.tables
        with_path: dict[int, Tensor] = {
            layer: FetchRows.apply(table.weight, home, rows[layer])  # pyright: ignore
            for layer, table in tables.items()
        }
        return Arrived(with_path, ahead.positions)

    @torch.no_grad()
    def _copy(self, ahead: Ahead) -> None:
        home = ahead.ids_R.cpu()
        self.settle(home)
        if ahead.staging.event is not None:
            ahead.staging.event.synchronize()
        for layer, table in self.tables.items():
            weight = table.weight.detach()
            staged = ahead.staging.rows(layer, home.numel(), weight)
            torch.index_select(weight, 0, home, out=staged)
            ahead.rows[layer] = self._to_device(staged)
        if self._stream is not None:
            ahead.event = ahead.staging.event = self._stream.record_event()

    def _to_device(self, staged: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return staged.to(self.device, copy=True)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream):
            return staged.to(self.device, non_blocking=True)

    @torch.no_grad()
    def patch(self) -> None:
        """Copy again what an optimizer step has just changed of the rows on their way."""
        ahead = self._ahead
        if ahead is None:
            return
        rows, home = ahead.arrived(), ahead.ids_R.cpu()
        for layer, table in self.tables.items():
            grad = table.weight.grad
            if grad is None:
                continue
            stale = torch.isin(home, grad.indices()[0], assume_unique=True).nonzero().flatten()
            fresh = table.weight.detach().index_select(0, home[stale])
            rows[layer].index_copy_(0, stale.to(self.device), fresh.to(self.device))


def train_from_host(stack: ModulatorStack, device: torch.device) -> HostRows:
    """Keep the tables of a stack in host memory from now on, with row-sparse gradients there.

    Call it before the model moves to `device`, where the backbone computes.
    """
    for module in stack.layers.values():
        module.table = HostTable(module.table)  # pyright: ignore
    source = HostRows(stack, device)
    stack.source = source  # pyright: ignore
    return source
