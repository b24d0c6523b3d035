"""`retoken eval` and `retoken generate`: what they print, and that a seed decides what is written."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
Run = Callable[[str], Path]


@pytest.fixture
def written(cli: Cli, tiny_run: Run) -> Callable[..., dict[str, Any]]:
    """`generate --json` of a small run with these options."""
    run = tiny_run("mort")

    def generate(*options: object) -> dict[str, Any]:
        code, out, err = cli("generate", run, "--max-new-tokens", 12, "--json", *options)
        assert (code, err) == (0, "")
        return json.loads(out)

    return generate


def test_eval_prints_what_it_measured(cli: Cli, tiny_run: Run, tiny_store: Path, tmp_path: Path) -> None:
    run = tiny_run("mort")
    code, out, err = cli("eval", run, "--data", tiny_store, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    reported = json.loads((run / "result.json").read_text())
    assert found["val_loss"] == pytest.approx(reported["val_loss"], rel=1e-6)
    code, out, err = cli("eval", run, "--data", tiny_store)
    assert (code, err) == (0, "")
    assert f"{found['val_loss']:.4f} nats" in out and f"{found['val_bits_per_byte']:.4f}" in out

    text = tmp_path / "text.txt"
    text.write_text("the cat sees a house " * 5)
    code, out, err = cli("eval", run, "--text", text, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["bytes"] == text.stat().st_size


def test_eval_divides_and_pairs(cli: Cli, tiny_run: Run, tiny_store: Path, tmp_path: Path) -> None:
    run, other, figure = tiny_run("mort"), tiny_run("baseline"), tmp_path / "new" / "figure.svg"
    text = tmp_path / "text.txt"
    text.write_text("the cat sees a house " * 50)
    words = ("eval", run, "--data", tiny_store, "--text", text, "--by", "band", "row", "position", "part")
    code, out, err = cli(*words, "--against", other, "--plot", figure, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["other"].startswith(str(other)) and found["counts"] == str(tiny_store)
    store, own = found["domains"]
    assert (store["domain"], own["domain"]) == ("store", "text.txt")
    reported = [json.loads((each / "result.json").read_text())["val_loss"] for each in (run, other)]
    assert store["difference"] == pytest.approx(reported[0] - reported[1], abs=1e-6)
    assert store["low"] <= store["difference"] <= store["high"] and store["unit"] == "document"
    assert set(store["by"]) == {"band", "row", "position", "part"}
    for groups in store["by"].values():
        assert sum(each["tokens"] for each in groups) == store["tokens"]
        assert sum(each["against"]["share"] for each in groups) == pytest.approx(1)
    drawn = figure.read_text()
    assert drawn.startswith("<svg") and "occurrences in training" in drawn and "text.txt" in drawn

    code, out, err = cli(*words, "--against", other)
    assert (code, err) == (0, "")
    word = next(each for each in store["by"]["part"] if each["group"] == "word")
    assert f"{word['val_loss']:.4f}" in out and f"{word['against']['val_loss']:.4f}" in out
    assert "text.txt, by place in the window" in out and "and not over seeds of training" in out


def test_eval_of_one_domain_keeps_its_numbers_on_top(cli: Cli, tiny_run: Run, tiny_store: Path) -> None:
    code, out, err = cli("eval", tiny_run("mort"), "--data", tiny_store, "--by", "part", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["on"] == str(tiny_store) and list(found["by"]) == ["part"] and "against" not in found
    code, out, err = cli("eval", tiny_run("mort"), "--data", tiny_store, "--by", "part")
    assert (code, err) == (0, "")
    assert f"{found['val_loss']:.4f} nats" in out and "by part of the vocabulary" in out


def test_the_seed_decides_the_text(written: Callable[..., dict[str, Any]]) -> None:
    first, again, other = (written("--prompt", "the cat", "--seed", seed) for seed in (1, 1, 2))
    assert first == again
    assert first["text"] != other["text"]
    assert first["new_tokens"] == 12 and first["prompt"] == "the cat"


def test_temperature_zero_needs_no_seed(written: Callable[..., dict[str, Any]]) -> None:
    texts = {written("--temperature", 0, "--seed", seed)["text"] for seed in (1, 2)}
    assert len(texts) == 1


def test_the_text_is_printed_with_its_prompt(
    cli: Cli, tiny_run: Run, written: Callable[..., dict[str, Any]]
) -> None:
    options = ("--prompt", "the cat", "--temperature", 0)
    code, out, err = cli("generate", tiny_run("mort"), "--max-new-tokens", 12, *options)
    assert (code, err) == (0, "")
    assert out.startswith("the cat") and out.strip() == "the cat" + written(*options)["text"].rstrip()


def test_as_many_tokens_as_the_positions_hold(cli: Cli, tiny_run: Run, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny_run("mort") / "model", tmp_path / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 9}))
    code, out, err = cli("generate", model, "--prompt", "the", "--temperature", 0, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["prompt_tokens"] + found["new_tokens"] == 9


def test_a_name_that_is_not_on_the_hub_is_one_line(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    code, out, err = cli("generate", "hf:nobody/no-such-model")
    assert (code, out) == (2, "")
    assert err.count("\n") == 1 and "nobody/no-such-model" in err


CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def test_a_chat_goes_on_with_lines_of_input(
    cli: Cli, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_run("mort") / "model", model)
    asked = ("generate", model, "--chat", "--prompt", "a cat", "--max-new-tokens", 4, "--temperature", 0)
    code, _, err = cli(*asked)
    assert code == 2 and "--chat needs a chat template" in err
    (model / "chat_template.jinja").write_text(CHAT)
    monkeypatch.setattr("sys.stdin", io.StringIO("a house\n\n"))
    code, out, err = cli(*asked, "--json")
    assert (code, err) == (0, "")
    turns = json.loads(out)["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert [turns[0]["content"], turns[2]["content"]] == ["a cat", "a house"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, out, err = cli(*asked)
    assert (code, err) == (0, "") and out.strip() == turns[1]["content"].strip()
