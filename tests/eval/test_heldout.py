"""Held-out loss outside training: the same numbers as training's, and every token counted once."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import retoken
from retoken.errors import CheckpointError, ConfigError, DataError
from retoken.eval import evaluate_store, evaluate_text, open_checkpoint
from retoken.eval.material import text_windows
from retoken.testing import tiny_model
from retoken.train.result import TrainResult
from retoken.train.world import World

Run = Callable[[str], Path]


@pytest.mark.parametrize("variant", ["baseline", "retoken", "mort"])
def test_a_runs_checkpoint_has_the_loss_its_run_reported(
    tiny_run: Run, tiny_store: Path, variant: str
) -> None:
    run = tiny_run(variant)
    reported = TrainResult.read(run / "result.json")
    found = evaluate_store(open_checkpoint(str(run)), tiny_store, World())
    assert found.val_loss == pytest.approx(reported.val_loss, rel=1e-6)
    assert found.val_bits_per_byte == pytest.approx(reported.val_bits_per_byte, rel=1e-6)
    assert found.tokens == reported.val_tokens
    assert found.context_length == 32


def test_the_batch_size_does_not_change_the_loss(tiny_run: Run, tiny_store: Path) -> None:
    loaded = open_checkpoint(str(tiny_run("retoken")))
    one, many = (evaluate_store(loaded, tiny_store, World(), batch_size=size) for size in (1, 7))
    assert one.tokens == many.tokens
    assert one.val_loss == pytest.approx(many.val_loss, rel=1e-6)


def test_a_text_is_predicted_token_by_token_from_its_start(tiny_run: Run, tmp_path: Path) -> None:
    loaded = open_checkpoint(str(tiny_run("mort")))
    text = "the cat sees a house; naïve kings run over blue trees and under red ones. " * 3
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    found = evaluate_text(loaded, tmp_path / "text.txt", World(), context_length=16)

    tokenizer = loaded.need_tokenizer()
    ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"]]
    total = 0.0
    for start in range(0, len(ids) - 1, 16):
        window = torch.tensor(ids[start : start + 17])
        with torch.no_grad():
            logits = loaded.model(input_ids=window[None, :-1]).logits[0]
        total += F.cross_entropy(logits, window[1:], reduction="sum").item()
    assert found.tokens == len(ids) - 1
    assert found.bytes == len(text.encode())
    assert found.val_loss == pytest.approx(total / (len(ids) - 1), rel=1e-5)
    assert found.val_bits_per_byte == pytest.approx(total / math.log(2) / len(text.encode()), rel=1e-5)


@pytest.mark.parametrize("length", [2, 16, 17, 18, 33, 50])
def test_text_windows_predict_every_token_but_the_first_once(length: int) -> None:
    ids = torch.arange(length)
    targets = torch.cat([window[:, 1:].flatten() for window in text_windows(ids, 16, 2)])
    assert targets.tolist() == list(range(1, length))


def test_part_of_a_text(tiny_run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sees a house " * 30)
    found = evaluate_text(
        open_checkpoint(str(tiny_run("baseline"))), tmp_path / "text.txt", World(), max_tokens=10
    )
    assert found.tokens == 10
    assert 10 <= found.bytes <= 80


def test_a_run_folder_stands_for_its_model_and_an_unfinished_one_for_its_newest_checkpoint(
    tiny_run: Run,
) -> None:
    run = tiny_run("mort")
    step = run / "checkpoints" / "step-000003"
    weights = [open_checkpoint(str(path)).model.state_dict() for path in (run, run / "model", step)]
    assert all(torch.equal(weights[0][key], other[key]) for other in weights[1:] for key in weights[0])
    assert retoken.modulators(open_checkpoint(str(run)).model)
    # A checkpoint holds no tokenizer of its own; its run's store does.
    assert (
        open_checkpoint(str(step)).need_tokenizer().get_vocab()
        == open_checkpoint(str(run)).need_tokenizer().get_vocab()
    )


def test_other_tokenizers_and_larger_vocabularies_are_refused(
    tiny_run: Run, tiny_store: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    tiny_model("llama").save_pretrained(small)
    with pytest.raises(DataError, match="300 token ids; accepted: up to the model's 131"):
        evaluate_store(open_checkpoint(str(small)), tiny_store, World())
    with pytest.raises(CheckpointError, match="no tokenizer"):
        open_checkpoint(str(small)).need_tokenizer()

    other = tmp_path / "other"
    loaded = open_checkpoint(str(tiny_run("mort")))
    loaded.model.save_pretrained(other)
    tokenizer = loaded.need_tokenizer()
    tokenizer.add_tokens(["a word of its own"])
    tokenizer.save_pretrained(other)
    with pytest.raises(DataError, match="another tokenizer"):
        evaluate_store(open_checkpoint(str(other)), tiny_store, World())


def test_a_context_beyond_the_models_positions_is_refused(tiny_run: Run, tiny_store: Path) -> None:
    loaded = open_checkpoint(str(tiny_run("mort")))
    assert loaded.positions
    with pytest.raises(ConfigError, match="context-length"):
        evaluate_store(loaded, tiny_store, World(), context_length=loaded.positions + 1)
