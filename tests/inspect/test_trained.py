"""Rows never trained: the tokens that the run's own batches did not hold."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from retoken.data.tokens import TokenStore, WindowReader
from retoken.inspect.trained import touched

Run = Callable[[str], Path]


def fed(store: Path) -> torch.Tensor:
    """[V] bool: ids that three steps of four windows of 32 tokens read."""
    reader = WindowReader(TokenStore.open(store).split("train"), window=33, batch_size=4, seed=0)
    seen = torch.zeros(300, dtype=torch.bool)
    for _ in range(3):
        seen[reader.next_batch()[:, :-1].flatten()] = True
    return seen


@pytest.mark.parametrize("variant", ["retoken", "mort"])
@pytest.mark.parametrize("where", ["model", "checkpoints/step-000003"])
def test_the_optimizer_knows_which_tokens_were_fed(
    tiny_run: Run, tiny_store: Path, variant: str, where: str
) -> None:
    found = touched(tiny_run(variant) / where, range(3), None)
    assert found is not None and "step-000003" in found.source
    wanted = fed(tiny_store)
    assert torch.equal(found.token_V, wanted) and 0 < int(wanted.sum()) < 300
    share = wanted.double().mean().item()
    if variant == "retoken":
        assert found.row_share == pytest.approx(share)
    else:  # of five modulators three are chosen at a position
        assert 0.6 * share <= found.row_share <= share


def test_a_model_folder_alone_has_the_stores_counts_or_nothing(tiny_run: Run, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(tiny_run("retoken") / "model", tmp_path / "model"))
    assert touched(alone, range(3), None) is None
    found = touched(alone, range(3), torch.tensor([4, 0, 1]))
    assert found is not None and found.token_V.tolist() == [True, False, True]
    assert "counts" in found.source
