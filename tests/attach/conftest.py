"""The independent reading of an attached model that the battery compares with, and its configurations."""

import copy

import pytest
import torch
from torch import nn

import retoken
from retoken.ops import naive
from retoken.testing import DEPTH


class _Silent(nn.Module):
    """Stands in for an MLP: keeps what it is given, adds nothing."""

    def forward(self, hidden, *args, **kwargs):
        self.seen = hidden
        return torch.zeros_like(hidden)


class Reference(nn.Module):
    """The paper's equations on a plain backbone, knowing of its layers only that each has an `mlp`.

    A layer is run twice, once with its MLP silenced: the difference is the increment that enters the residual
    stream, wherever the family takes it from. Rows, scales and routers are leaves of its own: `parts[layer]`.
    """

    def __init__(self, backbone, config, attached):
        super().__init__()
        self.backbone, self.config = copy.deepcopy(backbone), config
        lists = [m for m in self.backbone.modules() if isinstance(m, nn.ModuleList)]
        self.layers = next(m for m in lists if len(m) == DEPTH and hasattr(m[0], "mlp"))
        self.parts = {}
        for layer, module in retoken.modulators(attached).items():
            self.parts[layer] = {k: v.detach().clone().requires_grad_() for k, v in module.named_parameters()}
        for layer in range(DEPTH):
            self._wrap(layer)

    def _wrap(self, layer):
        module = self.layers[layer]
        original, silent = module.forward, _Silent()

        def forward(hidden, *args, **kwargs):
            full = original(hidden, *args, **kwargs)
            mlp, module.mlp = module.mlp, silent
            without = original(hidden, *args, **kwargs)
            module.mlp = mlp
            return without + self._modulated(layer, full - without, hidden, silent.seen)

        module.forward = forward

    def _modulated(self, layer, increment, block_input, mlp_input):
        c, part = self.config, self.parts.get(layer)
        shape = increment.shape
        increment = increment.flatten(0, 1)
        if isinstance(c, retoken.ReTokenConfig):
            if part is not None:
                p = naive.retoken_gate(part["table.weight"], part["scale"], self.ids, c.norm, c.eps)
                increment = naive.retoken_increment(increment, p)
            return increment.view(shape)
        if part is not None:
            h = mlp_input if c.router_input == "post_attention" else self._rms(block_input)
            self.residuals[layer] = self._residual(part, h.flatten(0, 1))
        landing = self.residuals.get(layer - c.injection_delay)
        return (increment if landing is None else increment + landing).view(shape)

    def _residual(self, part, h):
        c = self.config
        logits = naive.mort_logits(h, part["router.weight"].T)
        self.logits.append(logits)
        chosen, weights = naive.mort_weights(logits, c.top_k)
        mixed = naive.mort_mix(part["table.weight"], self.ids, chosen, weights)
        return naive.mort_residual(mixed, part["scale"], DEPTH, c.norm, c.eps)

    @staticmethod
    def _rms(h):
        return h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def forward(self, input_ids, **kwargs):
        self.ids, self.residuals, self.logits = input_ids.flatten(), {}, []
        return self.backbone(input_ids=input_ids, use_cache=False, **kwargs)

    def balance_loss(self):
        """Eq. 21 averaged over layers, times lambda."""
        losses = [naive.balance_loss(logits, self.config.top_k) for logits in self.logits]
        return self.config.balance_coef * torch.stack(losses).mean()


@pytest.fixture
def reference():
    return Reference


MORT = {"num_modulators": 4, "top_k": 2, "balance_coef": 0.1}
CONFIGS = {
    "retoken": retoken.ReTokenConfig(norm="rms"),
    "retoken-l2-subset": retoken.ReTokenConfig(norm="l2", layers=(0, 2)),
    "mort": retoken.MoRTConfig(norm="rms", **MORT),
    "mort-block_input": retoken.MoRTConfig(norm="l2", router_input="block_input", **MORT),
    "mort-delay": retoken.MoRTConfig(norm="rms", injection_delay=1, **MORT),
    "mort-block_input-delay-subset": retoken.MoRTConfig(
        norm="rms", router_input="block_input", injection_delay=2, layers=(0,), **MORT
    ),
}


@pytest.fixture(params=CONFIGS, ids=str)
def config(request):
    """Every kind of modulator there is."""
    return CONFIGS[request.param]


@pytest.fixture(params=["retoken", "mort", "mort-block_input-delay-subset"], ids=str)
def main_config(request):
    """One of each kind, where the others would repeat what is tested."""
    return CONFIGS[request.param]


@pytest.fixture
def configs():
    return CONFIGS
