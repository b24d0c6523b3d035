"""The code path of `--corpus hf:NAME`, on a dataset repository in a folder."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retoken.data.corpus import open_corpus
from retoken.data.hub import hub_corpus
from retoken.data.progress import Reporter
from retoken.errors import DataError

CARD = """---
configs:
- config_name: sample
  data_files:
  - split: train
    path: data/*.parquet
- config_name: other
  data_files:
  - split: train
    path: other/*.parquet
---
"""


@pytest.fixture
def repository(tmp_path, documents, monkeypatch) -> Path:
    """Laid out like FineWeb-Edu: a card with configurations, data in several parquet files."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    folder = tmp_path / "web"
    (folder / "data").mkdir(parents=True)
    (folder / "other").mkdir()
    (folder / "README.md").write_text(CARD)
    for index in range(4):
        part = documents[60 * index : 60 * index + 60]
        table = pa.table({"text": part, "score": [3.5] * len(part)})
        pq.write_table(table, folder / "data" / f"train-{index:05d}.parquet", row_group_size=7)
    pq.write_table(pa.table({"text": ["other"]}), folder / "other" / "x.parquet")
    return folder


def corpus(repository: Path, **options):
    wanted = {"subset": "sample", "split": "train", "revision": "", "field": "text", **options}
    return hub_corpus(str(repository), **wanted)


def test_records_are_streamed_in_order_and_the_sources_are_named(repository, documents):
    found = corpus(repository)
    assert list(found.open()) == documents
    assert list(found.open()) == documents, "every opening starts at the first document"
    assert found.name == "hf:web"
    names = [file["name"] for file in found.sources[0]["files"]]
    assert "data/train-00000.parquet" in names
    assert str(repository.parent) not in str(found.sources)


@pytest.mark.parametrize("taken", [1, 59, 60, 61, 130, 240])
def test_seeking_is_exact(repository, documents, taken):
    stream = corpus(repository).open()
    records = iter(stream)
    assert [next(records) for _ in range(taken)] == documents[:taken]
    other = corpus(repository).open()
    other.seek(stream.position())
    assert list(other) == documents[taken:]
    assert other.position()["documents"] == len(documents)


def test_equals_a_preparation_of_the_same_text(make, repository, tmp_path):
    streamed = make("streamed", corpus=f"hf:{repository}", subset="sample", shard_bytes=20_000)
    local = make("local", shard_bytes=20_000)
    assert streamed.splits == local.splits
    assert streamed.tokenizer_fingerprint == local.tokenizer_fingerprint


def test_an_interrupted_stream_is_continued(make, contents, repository, tmp_path):
    class Interrupt(Reporter):
        left = 4

        def update(self, stage: str, done: int, total: int | None) -> None:
            self.left -= stage == "tokenize"
            if not self.left:
                raise KeyboardInterrupt

    options = {"corpus": f"hf:{repository}", "subset": "sample", "shard_bytes": 20_000}
    make("whole", **options)
    with pytest.raises(KeyboardInterrupt):
        make("out", Interrupt(), **options)
    make("out", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"subset": "nope"}, "'nope' not found. Available: "),
        ({"split": "test"}, "Bad split: test"),
    ],
)
def test_a_wrong_name_is_told_at_once(repository, options, told):
    with pytest.raises(DataError, match=told) as caught:
        corpus(repository, **options)
    assert len(str(caught.value).splitlines()) == 1


def test_a_wrong_field_names_the_record_and_the_fields(repository):
    with pytest.raises(DataError, match="record 1: no field 'body'; fields: text, score"):
        list(corpus(repository, field="body").open())


def test_a_dataset_out_of_reach_is_told(make, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no route to the hub\nand a second line")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", refuse)
    with pytest.raises(
        DataError, match="dataset 'someone/something' is neither a local folder nor reach"
    ) as caught:
        make(corpus="hf:someone/something")
    assert "second line" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_broken_connection_keeps_what_is_complete(make, repository, contents, tmp_path, monkeypatch):
    options = {"corpus": f"hf:{repository}", "subset": "sample", "shard_bytes": 20_000}
    make("whole", **options)
    real = open_corpus

    def breaking(config):
        found = real(config)
        openings = [0]

        def opened():
            openings[0] += 1
            stream = found.open()
            if openings[0] == 2:  # the first one trains the tokenizer
                stream._dataset = Breaking(stream._dataset)
            return stream

        return type(found)(name=found.name, sources=found.sources, open=opened)

    monkeypatch.setattr("retoken.data.prepare.open_corpus", breaking)
    with pytest.raises(DataError, match="record 101: the line is dead"):
        make("out", **options)
    assert list((tmp_path / "out").glob("train-*.bin"))
    monkeypatch.setattr("retoken.data.prepare.open_corpus", real)
    make("out", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


class Breaking:
    """A dataset whose connection breaks behind 100 records."""

    def __init__(self, dataset) -> None:
        self._dataset = dataset
        self.state_dict = dataset.state_dict

    def __iter__(self):
        for index, record in enumerate(self._dataset):
            if index == 100:
                raise ConnectionError("the line is dead")
            yield record
