"""Documents out of a Hugging Face dataset, by name or local path, streamed: nothing is downloaded whole."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retoken.data.files import ResumableError, first_line
from retoken.data.sources import describe, text_field
from retoken.data.stream import Corpus
from retoken.errors import DataError


def hub_corpus(name: str, *, subset: str, split: str, revision: str, field: str) -> Corpus:
    """A dataset as `datasets.load_dataset(name, subset, split=split, streaming=True)` reads it.

    Args:
        name: repository name such as "HuggingFaceFW/fineweb-edu", or a folder laid out like one.
        subset: configuration, such as "sample-10BT"; "" for the default one.
        split: split of the dataset, usually "train".
        revision: branch, tag or commit; "" for the newest. The commit it stands for goes into the manifest.
        field: which column holds the text.

    Raises:
        DataError: unknown or unreachable dataset, subset or split.
    """
    local = Path(name)
    here = local.is_dir()
    commit = "" if here else _commit(name, revision)

    def opened() -> "HubStream":
        return HubStream(_load(name, subset, split, commit), field=field, where=f"hf:{name}")

    opened()  # a wrong name is reported before anything is written
    source: dict[str, Any] = {"dataset": local.name if here else name, "subset": subset, "split": split}
    if here:
        files = sorted(file for file in local.rglob("*") if file.is_file() and ".git" not in file.parts)
        source["files"] = [describe(file, local) for file in files]
    else:
        source["commit"] = commit
    return Corpus(name=f"hf:{source['dataset']}", sources=(source,), open=opened)


def _commit(name: str, revision: str) -> str:
    """The commit a revision stands for, so that a resumed preparation reads the same files."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, revision=revision or None, timeout=30).sha or revision
    except Exception as error:
        raise DataError(
            f"dataset '{name}' is neither a local folder nor reachable by that name: {first_line(error)}"
        ) from None


def _load(name: str, subset: str, split: str, commit: str) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(name, subset or None, split=split, revision=commit or None, streaming=True)
    except Exception as error:  # `datasets` raises many types; all of them mean that this cannot be read
        raise DataError(f"dataset '{name}' cannot be opened: {first_line(error)}") from None


class HubStream:
    """A streamed dataset; seeking uses the dataset's own state, so finished shards aren't fetched again."""

    def __init__(self, dataset: Any, *, field: str, where: str) -> None:
        self._dataset = dataset
        self._field = field
        self._where = where
        self._count = 0

    def __iter__(self) -> Iterator[str]:
        records = iter(self._dataset)
        while True:
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:
                raise ResumableError(
                    f"{self._where}: record {self._count + 1}: {first_line(error)}"
                ) from None
            self._count += 1
            yield text_field(record, self._field, f"{self._where}: record {self._count}")

    def position(self) -> dict[str, Any]:
        return {"documents": self._count, "state": self._dataset.state_dict()}

    def seek(self, position: dict[str, Any]) -> None:
        self._count = int(position["documents"])
        self._dataset.load_state_dict(position["state"])
