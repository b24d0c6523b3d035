"""The decode bench on a GPU: replays of a graph decode what calls do, from every placement."""

from dataclasses import replace

import pytest
import torch

from retoken.bench.decode import cases, prompts, turns
from retoken.bench.decode.passes import EagerPasses, GraphPasses, repeatable

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

VARIANTS = ("retoken", "mort-2of4")
PLACEMENTS = ("host", "host-direct", "disk-warm")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("passes", [EagerPasses, GraphPasses])
def test_sixteen_sequences_of_the_xl_shape(variant, passes, tmp_path):
    """From every placement the resident model's bits, which it has to give twice itself.

    With PyTorch's choice of attention, cuDNN's, the plain backbone does not.
    """
    chance = torch.Generator().manual_seed(0)
    texts = torch.randint(2048, (3, 16, 134), generator=chance)
    some = [prompts.Prompt(*text.split([128, 6], dim=1)) for text in texts]
    backbone = cases.random_backbone("dense-xl", torch.bfloat16, 2048, device="cuda")
    options = {"kernels": "triton", "folder": tmp_path}
    _, resident, *placed = cases.resident_cases(backbone, (variant,), ("host", "host-direct"), **options)
    again = replace(resident, placement="resident again", model=cases.twin(resident.model))
    made = [replace(case, passes=passes) for case in (resident, again, *placed)]
    with repeatable(), torch.inference_mode():
        by = {case.placement: case.passes_over(some[0]) for case in made}
        for prompt in some:
            found = {case.placement: turns.run(case, by[case.placement], prompt)[2] for case in made}
            wrong = [name for name, logits in found.items() if not torch.equal(logits, found["resident"])]
            assert not wrong, f"{wrong} differ"
    plain = cases.Case(variant=cases.BASELINE, placement="", model=backbone, passes=passes)
    assert len(turns.take([plain, made[0], made[-1]], some, lambda: None)) == 6


@pytest.mark.parametrize("kernels", ["eager", "triton"])
def test_replays_of_a_graph_decode_what_calls_do(tiny_store, tmp_path, kernels):
    some = prompts.cut(tiny_store, count=3, batch=2, length=9, following=6, seed=0)
    backbone = cases.random_backbone("demo", torch.float32, device="cuda")
    called = cases.resident_cases(backbone, VARIANTS, PLACEMENTS, kernels=kernels, folder=tmp_path)
    replayed = [replace(case, passes=GraphPasses) for case in called]
    for case, other in zip(called, replayed, strict=True):
        with torch.inference_mode():
            passes = other.passes_over(some[0])
        for prompt in some:
            wanted = turns.run(case, case.passes_over(prompt), prompt)[2]
            torch.testing.assert_close(turns.run(other, passes, prompt)[2], wanted, rtol=1e-3, atol=1e-3)
    readings = turns.take(replayed, some, lambda: None)
    assert len(readings) == 2 * (1 + len(VARIANTS) * (1 + len(PLACEMENTS)))
