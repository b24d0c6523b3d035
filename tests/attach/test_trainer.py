"""transformers' Trainer: trains, accumulates, checkpoints and resumes an attached model."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import retoken
from retoken.testing import assert_close, randomize, tiny_model, token_ids

CLOSE = {"units": 256}  # four SGD steps through three layers; the two sides sum batches in another order


def _attached(config, family="llama"):
    model = retoken.attach(tiny_model(family), config)
    randomize(model.retoken)
    return model


class _Texts(torch.utils.data.Dataset):
    """Sequences of equal length whose labels are masked to unequal counts."""

    def __init__(self, count=16):
        self.rows = token_ids(count, 7)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        labels = self.rows[i].clone()
        labels[: i % 5] = -100
        return {"input_ids": self.rows[i], "labels": labels}


def _trainer(model, out, evaluate=None, **overrides):
    options = {
        "output_dir": str(out),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    arguments = TrainingArguments(**(options | overrides))
    return Trainer(model=model, args=arguments, train_dataset=_Texts(), eval_dataset=evaluate)


def _weights(model):
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def test_training_moves_every_modulator(main_config, tmp_path):
    model = _attached(main_config)
    start = _weights(model)
    result = _trainer(model, tmp_path).train()
    assert result.global_step == 4 and result.training_loss > 0
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, start[k])}
    assert {n for n, _ in model.retoken.named_parameters(prefix="retoken")} <= moved


@pytest.mark.parametrize("kind", ["retoken", "mort"])
def test_accumulated_batches_equal_the_loop_by_hand(kind, configs, tmp_path):
    """Each micro-batch adds its tokens' loss over the batch's tokens, and its share of the balance loss."""
    model, by_hand = _attached(configs[kind]), _attached(configs[kind])
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    trainer = _trainer(model, tmp_path, **options)
    batches = list(_trainer(by_hand, tmp_path, **options).get_train_dataloader())[:8]
    trainer.train()
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05)
    for step in range(4):
        parts = batches[2 * step : 2 * step + 2]
        counts = [int((b["labels"][:, 1:] != -100).sum()) for b in parts]
        for batch, count in zip(parts, counts, strict=True):
            mean = by_hand(**batch).loss  # the mean over this part's tokens, plus its balance loss
            (mean * count / sum(counts)).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, value in by_hand.state_dict().items():
        assert_close(name, value, model.state_dict()[name], **CLOSE)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_resuming_equals_never_stopping(family, main_config, tmp_path):
    whole = _attached(main_config, family)
    _trainer(whole, tmp_path / "a", optim="adamw_torch", save_strategy="steps", save_steps=2).train()
    resumed = retoken.attach(
        tiny_model(family), main_config
    )  # other tables: they must come from the checkpoint
    trainer = _trainer(resumed, tmp_path / "b", optim="adamw_torch")
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_trainer_checkpoint_loads_as_a_model(main_config, tmp_path):
    model = _attached(main_config)
    _trainer(model, tmp_path, save_strategy="steps", save_steps=4).train()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-4")
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name


def test_the_best_model_is_brought_back(configs, tmp_path):
    """Trainer loads it into the model with `load_state_dict`, from a file with the pinned keys."""
    model = _attached(configs["retoken"])
    keep = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    keep |= {"learning_rate": 20.0, "load_best_model_at_end": True}
    trainer = _trainer(model, tmp_path, evaluate=_Texts(4), **keep)
    trainer.train()
    assert trainer.state.best_global_step == 1  # such a rate makes every later step worse
    best = AutoModelForCausalLM.from_pretrained(trainer.state.best_model_checkpoint)
    for name, value in best.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_activation_checkpointing_and_evaluation(configs, tmp_path):
    model = _attached(configs["mort"])
    trainer = _trainer(model, tmp_path, gradient_checkpointing=True)
    trainer.train()
    metrics = trainer.evaluate(_Texts(4))
    batch = torch.utils.data.default_collate([_Texts(4)[i] for i in range(4)])
    with torch.no_grad():
        assert metrics["eval_loss"] == pytest.approx(model.eval()(**batch).loss.item(), rel=1e-5)
