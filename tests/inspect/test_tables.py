"""What is read off tables, against the paper's equations token by token."""

import itertools
import math

import pytest
import torch

from retoken.eval.groups import Grouping
from retoken.inspect.neighbours import nearest
from retoken.inspect.routing import effective_number, loads
from retoken.inspect.tables import bands_of, scale_of, strengths
from retoken.ops import naive
from retoken.testing import VOCAB


def added(subject, layer, token):
    """What each of a token's rows adds, [E, D], from the naive equations."""
    config, module = subject.config, subject.modulators[layer]
    rows = module.table.weight[token].detach()
    if config.type == "retoken":
        return naive.retoken_gate(rows[None], module.scale.detach(), torch.tensor([0]), config.norm) - 1
    return torch.stack([naive.mort_residual(row, module.scale.detach(), 3, config.norm) for row in rows])


def test_strengths_are_those_of_the_naive_gate(build, kind):
    subject = build(kind)
    bands = bands_of(subject.count_V, VOCAB)
    for layer, module in subject.modulators.items():
        for band, found in zip(bands, strengths(module, bands), strict=True):
            moved = [added(subject, layer, token) for token in band.ids_R.tolist()]
            distance = sum(each.square().mean().sqrt().item() for each in moved) / len(moved)
            common = (sum(moved) / len(moved)).square().mean()
            power = sum(each.square().mean() for each in moved) / len(moved)
            norms = module.table.weight[band.ids_R].norm(dim=-1).mean().item()
            assert found.distance == pytest.approx(distance, rel=1e-6)
            assert found.shared == pytest.approx((common / power).item(), rel=1e-6)
            assert found.norm == pytest.approx(norms, rel=1e-6)


def test_rows_that_are_all_the_same_share_everything(build):
    subject = build("retoken")
    module = subject.modulators[0]
    with torch.no_grad():
        module.table.weight[:] = module.table.weight[7].clone()
    (found,) = strengths(module, bands_of(None, VOCAB))
    assert found.shared == pytest.approx(1) and not math.isnan(found.norm)


def test_bands_divide_the_vocabulary_by_rank(build):
    count_V = build().count_V
    bands = bands_of(count_V, VOCAB)
    assert [band.label for band in bands] == ["1–10", "11–100", "101–128", "never"]
    assert sorted(torch.cat([band.ids_R for band in bands]).tolist()) == list(range(VOCAB))
    assert sum(band.share for band in bands) == pytest.approx(1)
    for above, below in itertools.pairwise(bands):
        assert count_V[above.ids_R].min() >= count_V[below.ids_R].max()
    assert [len(band.ids_R) for band in bands_of(None, VOCAB)] == [VOCAB]


def test_a_scale_in_numbers(build):
    module = build().modulators[0]
    with torch.no_grad():
        module.scale[:] = -1
        module.scale[: len(module.scale) // 2] = 3
    found = scale_of(module)
    assert (found.mean, found.abs_mean, found.std) == (1, 2, 2)


def test_the_effective_number_of_known_loads():
    shares = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0], [1, 0, 0, 0]])
    assert effective_number(shares).tolist() == pytest.approx([4, 2, 1])


@pytest.mark.parametrize("name", ["mort", "mort-delay"])
def test_loads_are_counted_as_the_naive_router_chooses(build, name):
    subject = build(name)
    bands = bands_of(subject.count_V, VOCAB)
    counts = {layer: torch.zeros(VOCAB, 4) for layer in subject.modulators}
    entropies = {layer: [] for layer in subject.modulators}
    for window in subject.looked_NW:
        with torch.no_grad():
            subject.model(input_ids=window[None, :-1])
        for layer, routing in subject.model.retoken.routings.items():
            chosen, weights = naive.mort_weights(routing.logits_TE.reshape(-1, 4), 2)
            for token, ids, shares in zip(window[:-1].tolist(), chosen, weights.tolist(), strict=True):
                counts[layer][token, ids] += 1
                entropies[layer].append(-sum(share * math.log(share) for share in shares))
    for layer, found in loads(subject, bands).items():
        assert found.shares == pytest.approx((counts[layer].sum(0) / counts[layer].sum()).tolist())
        assert found.weighing == pytest.approx(math.exp(sum(entropies[layer]) / len(entropies[layer])))
        for band, shares in zip(bands, found.by_band, strict=True):
            wanted = counts[layer][band.ids_R].sum(0)
            assert (
                shares is None
                if not wanted.any()
                else shares == pytest.approx((wanted / wanted.sum()).tolist())
            )
    assert loads(build("retoken"), bands) == {}


def test_parts_of_the_vocabulary_are_told_apart_by_what_is_read(build):
    subject = build("mort")
    parts = Grouping(kind="part", labels=("even", "odd", "none"), assign=lambda windows: windows[:, 1:] % 2)
    counts = {layer: torch.zeros(2, 4) for layer in subject.modulators}
    for window in subject.looked_NW:
        with torch.no_grad():
            subject.model(input_ids=window[None, :-1])
        for layer, routing in subject.model.retoken.routings.items():
            for token, ids in zip(window[1:-1].tolist(), routing.chosen_TK.reshape(-1, 2)[1:], strict=True):
                counts[layer][token % 2, ids] += 1
    bands = bands_of(None, VOCAB)
    for layer, found in loads(subject, bands, parts).items():
        assert list(found.by_part) == ["even", "odd"]
        for part, count in zip(found.by_part.values(), counts[layer], strict=True):
            shares = count / count.sum()
            assert part.positions == count.sum() / 2
            assert part.shares == pytest.approx(shares.tolist())
            assert part.effective == pytest.approx(effective_number(shares).item())
            apart = sum(abs(a - b) for a, b in zip(part.shares, found.shares, strict=True)) / 2
            assert part.apart == pytest.approx(apart)
    assert all(not found.by_part for found in loads(subject, bands).values())


def test_the_nearest_are_by_the_cosine_of_all_layers(build, kind):
    subject = build(kind)
    vectors = torch.stack(
        [
            torch.cat([added(subject, layer, token).flatten() for layer in subject.modulators])
            for token in range(VOCAB)
        ]
    )
    cosines = torch.nn.functional.cosine_similarity(vectors[9], vectors, dim=-1)
    cosines[9] = -2
    (found,) = nearest(subject.modulators.values(), torch.tensor([9]), number=4)
    assert found.id == 9 and list(found.ids) == cosines.argsort(descending=True)[:4].tolist()
    assert found.cosines == pytest.approx(cosines.sort(descending=True).values[:4].tolist(), rel=1e-4)
    among = torch.zeros(VOCAB, dtype=torch.bool)
    among[[9, 20, 30]] = True
    (found,) = nearest(subject.modulators.values(), torch.tensor([9]), among, number=2)
    assert set(found.ids) == {20, 30}
