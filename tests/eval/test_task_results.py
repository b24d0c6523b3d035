"""Task results on disk: whole or absent, of one checkpoint under one set of settings; answers kept too."""

import math
from pathlib import Path

import pytest

from retoken.errors import CheckpointError, ConfigError
from retoken.eval.answers import Answers, key_of
from retoken.eval.results import Item, Metric, ResultsFolder, TaskResult

SETTINGS = {"checkpoint": "abc", "harness": "lm-eval 1", "data": "hub", "limit": 0}


def result(task: str = "piqa", values: tuple[float, ...] = (1.0, 0.0, 1.0)) -> TaskResult:
    items = tuple(
        Item(
            hash=f"{task}-{number}",
            gold=number,
            log_likelihoods=(-1.1 * (number + 1), -math.pi),
            values={"acc": value},
            gold_bits_per_byte=0.1 + number,
        )
        for number, value in enumerate(values)
    )
    metric = Metric(value=sum(values) / len(values), stderr=0.1)
    return TaskResult(task=task, metrics={"acc": metric}, items=items, about={"cut": 2})


@pytest.fixture
def folder(tmp_path: Path) -> ResultsFolder:
    return ResultsFolder.claim(tmp_path / "out", SETTINGS, "model")


def test_a_result_is_read_as_it_was_written(folder: ResultsFolder) -> None:
    assert not folder.has("piqa")
    folder.write(result())
    assert folder.has("piqa") and folder.read("piqa") == result()
    again = ResultsFolder.claim(folder.path, SETTINGS, "moved")
    assert again.read("piqa") == result() and again.name == "model"


@pytest.mark.parametrize("key", sorted(SETTINGS))
def test_other_settings_are_refused_by_name(folder: ResultsFolder, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"--out .*out has results with {key} .*; this is 'other'"):
        ResultsFolder.claim(folder.path, SETTINGS | {key: "other"}, "model")


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds something else"):
        ResultsFolder.claim(tmp_path, SETTINGS, "model")
    with pytest.raises(CheckpointError, match=r"has no manifest.json; accepted"):
        ResultsFolder.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_items_that_were_changed_are_refused(folder: ResultsFolder) -> None:
    folder.write(result())
    path = folder.path / "tasks" / "piqa.items.jsonl"
    path.write_text(path.read_text().replace('"acc": 0.0', '"acc": 1.0'))
    with pytest.raises(CheckpointError, match=r"piqa.items.jsonl is not what was written; delete"):
        folder.read("piqa")


def test_a_kill_between_items_and_summary_leaves_the_task_unfinished(folder: ResultsFolder) -> None:
    folder.write(result())
    (folder.path / "tasks" / "piqa.json").unlink()
    assert not folder.has("piqa")
    folder.write(result(values=(0.0, 0.0)))
    assert len(folder.read("piqa").items) == 2


def test_two_processes_do_not_write_into_one_folder(folder: ResultsFolder) -> None:
    other = ResultsFolder.open(folder.path)
    with folder.alone(), pytest.raises(ConfigError, match="another process"), other.alone():
        pass


def test_answers_come_back_bit_equal_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "partial" / "piqa.jsonl"
    keys = [key_of("loglikelihood", ("a cat", f" sees {number}")) for number in range(3)]
    with Answers(path) as answers:
        answers.add(keys[0], (-math.pi * 1e-7, True))
        answers.add(keys[1], "text with\na line", cut=True)
        answers.add(keys[2], (-1.0, False))
    path.write_bytes(path.read_bytes()[:-9])
    with Answers(path) as answers:
        assert answers[keys[0]] == (-math.pi * 1e-7, True) and answers[keys[1]] == "text with\na line"
        assert keys[2] not in answers and answers.cut == 1
        answers.add(keys[2], (-2.0, True))
    with Answers(path) as answers:
        assert answers[keys[2]] == (-2.0, True)
        answers.discard()
    assert not path.parent.exists()


def test_a_request_is_known_by_all_of_its_arguments() -> None:
    asked = {
        key_of("loglikelihood", ("a", "b")),
        key_of("loglikelihood", ("ab", "")),
        key_of("generate_until", ("a", "b")),
        key_of("generate_until", ("a", {"until": ["b"]})),
        key_of("generate_until", ("a", {"until": ["c"]})),
    }
    assert len(asked) == 5
