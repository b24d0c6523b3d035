"""The naive equations against a reading of the paper one token and one number at a time, in plain Python."""

import math
import random

import pytest
import torch

from retoken.ops import naive
from retoken.testing import assert_close

D, V, E, K, DEPTH, EPS = 5, 11, 4, 2, 3, 1e-6
IDS = [3, 0, 7, 3, 10]


def _numbers(*shape, seed):
    """Nested lists of that shape, and the same as a tensor."""
    draw = random.Random(seed)

    def fill(rest):
        return draw.gauss(0, 1) if not rest else [fill(rest[1:]) for _ in range(rest[0])]

    values = fill(shape)
    return values, torch.tensor(values, dtype=torch.float64)


def _norm(u, norm):
    length = math.sqrt(sum(a * a for a in u))
    gain = math.sqrt(len(u)) if norm == "rms" else 1.0
    return [gain * a / (length + EPS) for a in u]


def _sigmoid(g):
    return 1 / (1 + math.exp(-g))


def _logits(h, router):
    """Eq. 3, with the router as D rows of E numbers."""
    return [sum(h[d] * router[d][i] for d in range(D)) for i in range(E)]


def _choice(g):
    """G and w below Eq. 3."""
    best = sorted(range(E), key=lambda i: -g[i])[:K]
    total = sum(_sigmoid(g[j]) for j in best)
    return best, [_sigmoid(g[i]) / total for i in best]


@pytest.mark.parametrize("norm", ["l2", "rms"])
def test_gate_and_increment(norm):
    table, table_t = _numbers(V, D, seed=1)
    s, s_t = _numbers(D, seed=2)
    m, m_t = _numbers(len(IDS), D, seed=3)
    expected = []
    for token, increment in zip(IDS, m, strict=True):
        p = [1 + s[d] * n for d, n in enumerate(_norm(table[token], norm))]
        expected.append([increment[d] * p[d] for d in range(D)])
    p_t = naive.retoken_gate(table_t, s_t, torch.tensor(IDS), norm, EPS)
    assert_close(
        "Eq. 1-2", torch.tensor(expected, dtype=torch.float64), naive.retoken_increment(m_t, p_t), units=64
    )
    folded = naive.folded_gate(table_t, s_t, norm, EPS)
    assert_close("Eq. 8", p_t, folded[torch.tensor(IDS)])


@pytest.mark.parametrize("norm", ["l2", "rms"])
def test_mixture_and_write_back(norm):
    table, table_t = _numbers(V, E, D, seed=1)
    router, router_t = _numbers(D, E, seed=2)
    s, s_t = _numbers(D, seed=3)
    h, h_t = _numbers(len(IDS), D, seed=4)
    m, m_t = _numbers(len(IDS), D, seed=5)
    expected = []
    for token, state, increment in zip(IDS, h, m, strict=True):
        best, weights = _choice(_logits(state, router))
        mix = [sum(w * table[token][i][d] for i, w in zip(best, weights, strict=True)) for d in range(D)]
        r = [s[d] * n / math.sqrt(2 * DEPTH) for d, n in enumerate(_norm(mix, norm))]
        expected.append([state[d] + increment[d] + r[d] for d in range(D)])
    chosen, weights_t = naive.mort_weights(naive.mort_logits(h_t, router_t), K)
    e_t = naive.mort_mix(table_t, torch.tensor(IDS), chosen, weights_t)
    out = naive.mort_write_back(h_t, m_t, naive.mort_residual(e_t, s_t, DEPTH, norm, EPS))
    assert_close("Eq. 3-6", torch.tensor(expected, dtype=torch.float64), out, units=64)


def test_delayed_injection():
    h = [torch.full((2, D), float(layer)) for layer in range(5)]
    r = [torch.full((2, D), 10.0 * (layer + 1)) for layer in range(3)]
    out = naive.delayed_injection(h, r, 2)
    assert [x[0, 0].item() for x in out] == [0, 1, 2 + 10, 3 + 20, 4 + 30]
    undelayed = naive.delayed_injection(h, [*r, *r[:2]], 0)
    assert [x[0, 0].item() for x in undelayed] == [10, 21, 32, 13, 24]


def test_balance_loss():
    g, g_t = _numbers(6, E, seed=7)
    tokens = len(g)
    probability = [0.0] * E
    count = [0] * E
    for logits in g:
        total = sum(_sigmoid(a) for a in logits)
        for i, a in enumerate(logits):
            probability[i] += _sigmoid(a) / total
        for i in _choice(logits)[0]:
            count[i] += 1
    p = [x / tokens for x in probability]
    f = [n / (tokens * K) for n in count]
    expected = E * sum(a * b for a, b in zip(p, f, strict=True))
    assert_close("Eq. 21", torch.tensor(expected, dtype=torch.float64), naive.balance_loss(g_t, K))
    assert sum(f) == pytest.approx(1)


def test_a_perfectly_balanced_router_has_loss_one():
    """p_i = f_i = 1 / n_e gives n_e * n_e / n_e^2 = 1, the reading that fixes what p is (App. E)."""
    eye = 1e-9 * torch.eye(E, dtype=torch.float64)
    assert naive.balance_loss(eye, 1).item() == pytest.approx(1, abs=1e-6)
