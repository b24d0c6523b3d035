"""One optimizer step: forward, backward, clip, move. Splitting the batch changes nothing but memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

import retoken
from retoken.config import MoRTConfig
from retoken.ops import RouterLoad
from retoken.optim import clip_by_norm_, total_norm
from retoken.parallel import ShardedRows
from retoken.rows import HostRows
from retoken.train.config import TrainConfig
from retoken.train.evaluate import autocast
from retoken.train.furnish import Source
from retoken.train.world import World

Loads = dict[int, RouterLoad]


class Stepper:
    """Does one step after another on one model."""

    def __init__(
        self,
        model: PreTrainedModel,
        forward: Callable[..., Any],
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        world: World,
        source: Source | None = None,
    ) -> None:
        """`forward` is `model`, possibly compiled or wrapped for several processes; `source` has its rows."""
        self._model, self._forward, self._optimizer, self._world = model, forward, optimizer, world
        self._ahead = source if isinstance(source, HostRows) else None
        self._sum_over_shards = source.sum_over_shards if isinstance(source, ShardedRows) else None
        self._dense = source is not None and config.tables.optimizer == "adamw"
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._dtype = config.arithmetic
        self._clip = config.grad_clip or float("inf")
        share = world.share_of(config.batch_size)
        self._micro = min(config.micro_batch_size or share, share)
        attached = config.attached
        self._by_pass = config.balance_over == "pass"
        self._balances = isinstance(attached, MoRTConfig) and attached.balance_coef > 0

    @property
    def looks_ahead(self) -> bool:
        """Whether `step` gains from knowing the next windows."""
        return self._ahead is not None

    def step(self, windows: Tensor, upcoming: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Train on windows [B, S + 1]; `upcoming` are those of the next step.

        Returns:
            The mean next-token loss in nats, without auxiliary losses, and the global gradient norm before
            clipping. Both stay on the device: reading them would wait for it.
        """
        parts = windows.to(self._world.device, non_blocking=True).split(self._micro)
        following = [*parts[1:], self._first_of(upcoming)]
        with self._load_of(parts):
            losses = [
                self._backward(part, len(parts), last=part is parts[-1], after=after)
                for part, after in zip(parts, following, strict=True)
            ]
        grad_norm = self._clipped()
        self._densify()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return torch.stack(losses).mean(), grad_norm

    def _clipped(self) -> Tensor:
        """Clip by the global norm; the norm before. On a CPU, where looking is free, gradients within it stay
        unread: clipping would multiply each by 1."""
        norm = total_norm(self._parameters, self._sum_over_shards)
        if self._world.device.type != "cpu" or not norm <= self._clip:
            clip_by_norm_(self._parameters, self._clip, norm)
        return norm

    def _first_of(self, upcoming: Tensor | None) -> Tensor | None:
        """The next step's first micro-batch."""
        if upcoming is None or self._ahead is None:
            return None
        return upcoming[: self._micro].to(self._world.device, non_blocking=True)

    def _densify(self) -> None:
        """Row-sparse gradients for an optimizer that moves every row at every step."""
        if self._dense:
            for parameter in self._parameters:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.to_dense()

    def _backward(self, windows: Tensor, parts: int, *, last: bool, after: Tensor | None) -> Tensor:
        """Add the gradient of one of `parts` micro-batches; its next-token loss. `after` it comes that."""
        targets = windows[:, 1:].contiguous()
        with self._gradient_sync(last):
            with autocast(self._world.device, self._dtype):
                outputs = self._forward(
                    input_ids=windows[:, :-1], labels=targets, shift_labels=targets, use_cache=False
                )
            means = self._world.size * (1 if self._by_pass else parts)
            if self._ahead is not None and after is not None:
                self._model.retoken.prefetch(after[:, :-1])  # pyright: ignore
            balance = self._balance(means > 1)
            self._share_of(outputs.loss, balance, parts, means).backward()
        return self._language_loss(outputs, balance)

    def _balance(self, in_parts: bool) -> Tensor | None:
        """What the last forward pass's loss holds of it; with a gradient where that is a batch's part."""
        if not self._balances:
            return None
        with torch.set_grad_enabled(in_parts):
            return retoken.balance_loss(self._model)

    @staticmethod
    def _share_of(loss: Tensor, balance: Tensor | None, parts: int, means: int) -> Tensor:
        """What one of `parts` micro-batches adds to the step's objective.

        The next-token loss is a mean over micro-batches and processes. The balance parts of Eq. 21, which are
        in `loss` once, are to be summed over `means` of them: they get the factor that the means take away.
        """
        if balance is None or means == 1:
            return loss / parts
        return (loss + (means - 1) * balance) / parts

    def _language_loss(self, outputs: Any, balance: Tensor | None) -> Tensor:
        """The loss without MoRT's balance and without the router loss of a backbone that is a mixture."""
        loss = outputs.loss.detach()
        if balance is not None:
            loss = loss - balance.detach()
        auxiliary = getattr(outputs, "aux_loss", None)
        if auxiliary is None:
            return loss
        return loss - self._model.config.router_aux_loss_coef * auxiliary.detach()

    def _gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Processes average gradients once a step, behind the last micro-batch."""
        divided = getattr(self._model, "set_requires_gradient_sync", None)
        if divided is not None:
            divided(last)
        no_sync = getattr(self._forward, "no_sync", None)
        return nullcontext() if last or no_sync is None else no_sync()

    @contextmanager
    def _load_of(self, parts: Sequence[Tensor]) -> Iterator[None]:
        """Give the balance loss the counts of the whole batch where a forward pass sees only a part of it.

        Eq. 21 multiplies sums over the whole batch, so it needs them before the first backward. Processes
        that each have their part in one pass add them up behind it. Micro-batches need one more forward pass,
        without gradient, unless each counts as a batch of its own.
        """
        one_pass = self._by_pass or len(parts) == 1
        if not self._balances or (one_pass and self._world.size == 1):
            yield
            return
        total: Any = self._over_processes if one_pass else self._counted(parts)  # pyright: ignore
        with retoken.batch_load(self._model, total):
            yield

    @torch.compiler.disable
    @torch.no_grad()
    def _over_processes(self, loads: Loads) -> Loads:
        """What all processes' passes have counted, in one message."""
        sizes = [value.numel() for load in loads.values() for value in load]
        flat = torch.cat([value.detach().reshape(-1) for load in loads.values() for value in load])
        values = iter(self._world.sum(flat).split(sizes))
        return {
            layer: RouterLoad(*(next(values).view_as(value) for value in load))
            for layer, load in loads.items()
        }

    @torch.no_grad()
    def _counted(self, parts: Sequence[Tensor]) -> Loads:
        """Routing sums over all micro-batches and processes; dropout draws what the real pass will draw."""
        device = self._world.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), autocast(device, self._dtype):
            seen = [self._loads_of(part) for part in parts]
        return {layer: self._summed([loads[layer] for loads in seen]) for layer in seen[0]}

    def _loads_of(self, windows: Tensor) -> Loads:
        self._model(input_ids=windows[:, :-1], use_cache=False, logits_to_keep=1)
        return retoken.router_loads(self._model)

    def _summed(self, loads: Sequence[RouterLoad]) -> RouterLoad:
        sums = (torch.stack(column).sum(0) for column in zip(*loads, strict=True))
        return RouterLoad(*(self._world.sum(value) for value in sums))
