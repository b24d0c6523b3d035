"""`retoken serve` up to where the engine takes over: what it would run, and what it refuses before."""

import json
import shlex
from pathlib import Path

import pytest

import retoken
from retoken.attach.rivals import BigramConfig
from retoken.cli.main import main
from retoken.testing import tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("served") / "tiny"
    retoken.attach(tiny_model("llama"), retoken.ReTokenConfig()).save_pretrained(path)
    return path


def _dry(capsys, *words):
    assert main(["serve", *map(str, words), "--dry-run"]) == 0
    return shlex.split(capsys.readouterr().out)


def _after(line, option):
    return line[line.index(option) + 1]


def _refused(capsys, *words):
    assert main(["serve", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_on_loopback_with_vllms_own_defaults(capsys, folder):
    line = _dry(capsys, folder)
    assert (_after(line, "--host"), _after(line, "--port")) == ("127.0.0.1", "8000")
    assert (_after(line, "--model"), _after(line, "--served-model-name")) == (str(folder), "tiny")
    assert not {"--additional-config", "--enforce-eager", "--max-model-len"} & set(line)


def test_placement_and_options_reach_the_engine(capsys, folder, tmp_path):
    rows = tmp_path / "rows.safetensors"
    words = ("--tables", "disk", "--rows-path", rows, "--eager", "--max-model-len", 64)
    line = _dry(capsys, folder, *words, "--engine", "max-num-batched-tokens=128", "disable-log-stats")
    assert json.loads(_after(line, "--additional-config")) == {
        "retoken": {"tables": "disk", "path": str(rows)}
    }
    assert (_after(line, "--max-model-len"), _after(line, "--max-num-batched-tokens")) == ("64", "128")
    assert {"--enforce-eager", "--disable-log-stats"} <= set(line)


def test_the_key_is_not_on_the_command_line(folder, monkeypatch):
    from retoken.cli.serve import Serve

    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    server = Serve(checkpoint=folder, api_key="secret").server()
    assert "secret" not in " ".join(server.command())
    assert server.environment()["VLLM_API_KEY"] == "secret"
    assert "VLLM_API_KEY" not in Serve(checkpoint=folder).server().environment()


def test_what_is_refused_before_anything_starts(capsys, folder, tmp_path):
    assert 'path is None; accepted with tables="disk"' in _refused(capsys, folder, "--tables", "disk")
    assert "no model there; accepted: a folder" in _refused(capsys, tmp_path)
    assert "--port is 0; accepted: 1 to 65535" in _refused(capsys, folder, "--port", 0)
    assert "--engine sets port" in _refused(capsys, folder, "--engine", "port=1")
    assert "without dashes" in _refused(capsys, folder, "--engine=--port=1")
    assert "--kv-cache-gib is 0" in _refused(capsys, folder, "--kv-cache-gib", 0)


def test_a_plain_model_has_nothing_to_place(capsys, tmp_path):
    tiny_model("llama").save_pretrained(tmp_path / "plain")
    assert "no token-indexed parameters" in _refused(capsys, tmp_path / "plain", "--tables", "host")
    assert "--additional-config" not in _dry(capsys, tmp_path / "plain")


def test_rows_by_bigrams_are_served_and_those_of_rivals_are_not(capsys, tmp_path):
    by_both, rival = tmp_path / "both", tmp_path / "rival"
    retoken.attach(tiny_model("llama"), retoken.MoRTConfig.by_token_and_bigram(2)).save_pretrained(by_both)
    retoken.attach(tiny_model("llama"), BigramConfig()).save_pretrained(rival)
    assert "--model" in _dry(capsys, by_both)
    assert "has type 'bigram'; accepted: retoken or mort" in _refused(capsys, rival)


def test_packed_rows_are_opened_first(capsys, folder, tmp_path):
    out = tmp_path / "packed"
    assert main(["export", str(folder), "--out", str(out), "--rows", "int8"]) == 0
    capsys.readouterr()
    assert "--model" in _dry(capsys, out)
    whole = Path(out / "rows.safetensors").read_bytes()
    (out / "rows.safetensors").write_bytes(whole[:-64])
    assert "rows.safetensors" in _refused(capsys, out)


def test_without_the_engine_it_says_what_is_needed(capsys, folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "vLLM is not installed beside retoken" in _refused(capsys, folder)


def test_the_cache_that_is_asked_for_goes_before_the_variable(folder, monkeypatch):
    from retoken.cli.serve import Serve

    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    assert Serve(checkpoint=folder).server().environment()["VLLM_CPU_KVCACHE_SPACE"] == "2"
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "5")
    assert Serve(checkpoint=folder).server().environment()["VLLM_CPU_KVCACHE_SPACE"] == "5"
    chosen = Serve(checkpoint=folder, kv_cache_gib=3).server()
    assert chosen.environment()["VLLM_CPU_KVCACHE_SPACE"] == "3"


def test_rows_of_another_model_are_refused(capsys, folder, tmp_path):
    out = tmp_path / "packed"
    assert main(["export", str(folder), "--out", str(out), "--rows", "int8"]) == 0
    capsys.readouterr()
    config = json.loads((out / "config.json").read_text())
    config["retoken"]["rows_fingerprint"] = "0" * 64
    (out / "config.json").write_text(json.dumps(config))
    assert "of another model: its fingerprint is" in _refused(capsys, out)
