"""What the engine does with requests, rows and weights, on attached models."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from engines_common import NEW, VOCAB, assert_same, by_transformers, by_vllm, prompts, save, served
from safetensors.torch import load_file, save_file

import retoken
from retoken.cli.main import main
from retoken.errors import RetokenError
from retoken.serving.artifact import write_artifact
from retoken.serving.packed import PackedFile

R, M = retoken.ReTokenConfig, retoken.MoRTConfig
CONFIGS = {
    "retoken": R(),
    "mort": M(num_modulators=4, top_k=2, router_input="block_input", injection_delay=1),
    "recipe": M.by_token_and_bigram(2),
}


@pytest.fixture(scope="module", params=CONFIGS)
def folder(request, tmp_path_factory):
    return save(tmp_path_factory.mktemp("served") / request.param, CONFIGS[request.param])


@pytest.fixture(scope="module")
def wanted(folder):
    return by_transformers(folder, prompts())


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "model"
    assert main(["export", str(folder), "--out", str(out), "--rows", "float32"]) == 0
    return out


def test_chunked_prefill_and_prefix_cache(folder, wanted):
    from vllm import SamplingParams

    with served(folder, max_num_batched_tokens=32, enable_prefix_caching=True, block_size=32) as llm:
        assert_same(wanted, by_vllm(llm, prompts()))
        assert_same(wanted, by_vllm(llm, prompts()))
        again = {"prompt_token_ids": prompts()[-1] + wanted[-1][0]}
        params = SamplingParams(temperature=0, max_tokens=1, detokenize=False)
        assert llm.generate([again], params, use_tqdm=False)[0].num_cached_tokens == 64


def test_preempted_requests_are_computed_anew(folder):
    asked = prompts((60,) * 12)
    wanted = by_transformers(folder, asked, 48)
    with served(folder, num_gpu_blocks_override=8, enable_prefix_caching=False, block_size=64) as llm:
        assert_same(wanted, by_vllm(llm, asked, 48))


def test_several_answers_and_log_probabilities_of_the_prompt(folder, wanted):
    from vllm import SamplingParams

    asked = prompts()
    with served(folder) as llm:
        several = by_vllm(llm, asked, n=2, temperature=0.8, seed=5)
        assert len(several) == 2 * len(asked) and all(len(tokens) == NEW for tokens, _ in several)
        params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        answer = llm.generate([{"prompt_token_ids": asked[-1]}], params, use_tqdm=False)[0]
        model = retoken.load(folder, dtype=torch.float32)
        with torch.no_grad():
            logprobs = model(torch.tensor([asked[-1]])).logits[0].log_softmax(-1)
        for i, token in enumerate(asked[-1][1:]):
            assert abs(answer.prompt_logprobs[i + 1][token].logprob - float(logprobs[i, token])) < 2e-5


def test_speculation_by_n_grams(folder):
    asked = [p * 4 for p in prompts((4, 6, 9))]
    wanted = by_transformers(folder, asked)
    guess = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    with served(folder, speculative_config=guess) as llm:
        assert_same(wanted, by_vllm(llm, asked))


@pytest.mark.parametrize("tables", ["host", "disk"])
def test_packed_rows_in_place(packed, wanted, tables):
    with served(packed, {"tables": tables}) as llm:
        assert_same(wanted, by_vllm(llm, prompts()))


def test_the_engine_does_not_open_the_rows_file(packed, monkeypatch):
    """It would map it as private memory, which is refused where that is larger than the machine's."""
    from vllm.model_executor.model_loader import weight_utils

    opened, really = [], weight_utils.safe_open

    def noted(file, *args, **options):
        opened.append(Path(file).name)
        return really(file, *args, **options)

    monkeypatch.setattr(weight_utils, "safe_open", noted)
    with served(packed, {"tables": "disk"}):
        assert opened == ["model.safetensors"]


@pytest.mark.parametrize("tables", ["device", "host", "disk"])
def test_rows_of_some_tokens_only(folder, wanted, tables, tmp_path):
    if folder.name == "recipe":
        pytest.skip("rows that are looked up by n-grams are not pruned")
    out = tmp_path / "pruned"
    write_artifact(folder, out, kept=torch.arange(VOCAB) % 3 != 1)
    without = by_transformers(out, prompts())
    assert [tokens for tokens, _ in without] != [tokens for tokens, _ in wanted]
    with served(out, {"tables": tables}) as llm:
        assert_same(without, by_vllm(llm, prompts()))


@pytest.mark.parametrize("prefetch", ["record", "chosen", "none"])
def test_rows_of_a_plain_folder_are_packed_first(folder, wanted, prefetch, tmp_path):
    rows = tmp_path / "rows.safetensors"
    with served(folder, {"tables": "disk", "path": str(rows), "prefetch": prefetch}) as llm:
        assert_same(wanted, by_vllm(llm, prompts()))
    assert rows.exists()


@pytest.mark.parametrize(
    ("rows", "tables"),
    [("float32", "host"), ("bfloat16", "disk"), ("int8", "disk"), ("float8_e4m3", "host")],
)
def test_graphs_read_packed_rows(folder, rows, tables, tmp_path):
    """A loop adds up in another order than a kernel."""
    here = tmp_path / "packed"
    write_artifact(folder, here, rows=rows)
    with served(here, {"tables": tables}, enforce_eager=False) as llm:
        assert _in_graph(llm)
        assert_same(by_transformers(here, prompts()), by_vllm(llm, prompts()))


def _in_graph(llm):
    return llm.apply_model(lambda model: model.retoken_in_graph is not None) == [True]


def test_graphs_refuse_rows_of_another_type(folder, packed, tmp_path):
    """And so does every pass after it: the backbone's new weights are there."""
    here, other, asked = tmp_path / "model", tmp_path / "other", prompts()
    shutil.copytree(packed, here)
    with served(here, {"tables": "disk"}, enforce_eager=False, enable_prefix_caching=False) as llm:
        by_vllm(llm, asked)
        write_artifact(folder, other, rows="bfloat16")
        _move_into(here, other)
        for act in (lambda: llm.collective_rpc("reload_weights"), lambda: by_vllm(llm, asked)):
            with pytest.raises(RetokenError, match="passes were compiled for torch"):
                act()


def _move_into(here, other):
    for file in other.iterdir():
        file.replace(here / file.name)
    other.rmdir()


def test_a_graph_of_an_earlier_start_is_not_taken_for_other_rows(folder, tmp_path):
    """vLLM keeps graphs on disk, and looks neither at rows nor at their type when it takes one up."""
    here = tmp_path / "model"
    for rows in ("bfloat16", "int8"):
        shutil.rmtree(here, ignore_errors=True)
        write_artifact(folder, here, rows=rows)
        for _ in ("made", "taken up"):
            with served(here, {"tables": "disk"}, enforce_eager=False) as llm:
                assert _in_graph(llm)
                assert_same(by_transformers(here, prompts()), by_vllm(llm, prompts()))


def test_graphs_tell_a_record_that_was_changed(packed, tmp_path):
    here = Path(shutil.copytree(packed, tmp_path / "model"))
    with served(here, {"tables": "disk"}, enforce_eager=False, enable_prefix_caching=False) as llm:
        by_vllm(llm, prompts((5,)))
        file = PackedFile(here / "rows.safetensors")
        token = prompts((9,))[0][4]
        at = file.path.stat().st_size - (file.count_of_records - token) * file.layout.record_bytes
        with file.path.open("r+b") as stream:
            os.pwrite(stream.fileno(), bytes([1, 2, 3]), at)
        with pytest.raises(RetokenError, match=f"record of token {token} was changed"):
            by_vllm(llm, prompts((9,)))


def test_what_lies_in_pieces_is_read_by_operators(folder, tmp_path):
    np.save(tmp_path / "counts.npy", np.arange(VOCAB))
    tiers = {
        "tables": "disk",
        "path": str(tmp_path / "rows"),
        "budget": {"host": 200_000},
        "counts": str(tmp_path / "counts.npy"),
    }
    with served(folder, tiers, enforce_eager=False) as llm:
        assert_same(by_transformers(folder, prompts()), by_vllm(llm, prompts()))
        assert not _in_graph(llm)


def test_host_and_a_cascade(folder, wanted, tmp_path):
    with served(folder, {"tables": "host"}) as llm:
        assert_same(wanted, by_vllm(llm, prompts()))
    counts = tmp_path / "counts.npy"
    np.save(counts, np.arange(VOCAB))
    tiers = {
        "tables": "disk",
        "path": str(tmp_path / "rows"),
        "budget": {"host": 200_000},
        "counts": str(counts),
    }
    with served(folder, tiers) as llm:
        assert_same(wanted, by_vllm(llm, prompts()))


@pytest.mark.parametrize("tables", ["device", "host"])
def test_weights_are_reloaded_with_their_tables(folder, tables, tmp_path):
    here, asked = Path(shutil.copytree(folder, tmp_path / "model")), prompts()
    with served(here, {"tables": tables}, enable_prefix_caching=False) as llm:
        before = by_vllm(llm, asked)
        shutil.copyfile(_upside_down(folder) / "model.safetensors", here / "model.safetensors")
        llm.collective_rpc("reload_weights")
        after = by_vllm(llm, asked)
    assert [tokens for tokens, _ in before] != [tokens for tokens, _ in after]
    assert_same(by_transformers(here, asked), after)


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
@pytest.mark.parametrize("tables", ["host", "disk"])
def test_packed_rows_are_reloaded(folder, packed, tables, eager, tmp_path):
    here, other, asked = tmp_path / "model", tmp_path / "other", prompts()
    shutil.copytree(packed, here)
    assert main(["export", str(_upside_down(folder)), "--out", str(other), "--rows", "float32"]) == 0
    with served(here, {"tables": tables}, enforce_eager=eager, enable_prefix_caching=False) as llm:
        before = by_vllm(llm, asked)
        _move_into(here, other)
        llm.collective_rpc("reload_weights")
        after = by_vllm(llm, asked)
    assert [tokens for tokens, _ in before] != [tokens for tokens, _ in after]
    assert_same(by_transformers(_upside_down(folder), asked), after)


def _upside_down(folder):
    """The same model with its tables upside down, in a folder beside."""
    other = folder.parent / f"{folder.name}-other"
    if not other.exists():
        shutil.copytree(folder, other)
        state = load_file(other / "model.safetensors")
        flipped = {key: x.flip(0).contiguous() if key.endswith(".table") else x for key, x in state.items()}
        save_file(flipped, other / "model.safetensors", {"format": "pt"})
    return other


@pytest.mark.parametrize("tables", ["device", "host"])
def test_a_trainer_sends_weights_by_name(folder, tables):
    from file_transfer import register

    register()
    other, asked = _upside_down(folder), prompts()
    engine = {"backend": "file"}
    with served(
        folder, {"tables": tables}, weight_transfer_config=engine, enable_prefix_caching=False
    ) as llm:
        before = by_vllm(llm, asked)
        llm.init_weight_transfer_engine({"init_info": {}})
        llm.start_weight_update()
        for part in (0, 1):
            file = str(other / "model.safetensors")
            llm.update_weights({"update_info": {"file": file, "part": part}})
        llm.finish_weight_update()
        after = by_vllm(llm, asked)
    assert [tokens for tokens, _ in before] != [tokens for tokens, _ in after]
    assert_same(by_transformers(other, asked), after)


def test_rows_on_disk_are_not_changed_by_sending_others(folder, tmp_path):
    other, asked = _upside_down(folder), prompts((5, 9))
    rows = str(tmp_path / "rows.safetensors")
    with served(folder, {"tables": "disk", "path": rows}, enable_prefix_caching=False) as llm:
        before = by_vllm(llm, asked)
        state = load_file(other / "model.safetensors")
        tables = [(name, x) for name, x in state.items() if name.endswith(".table")]
        with pytest.raises(RetokenError, match="was sent, but its rows are read from a file"):
            llm.apply_model(lambda model: model.load_weights(tables))
        assert_same(before, by_vllm(llm, asked))


@pytest.mark.parametrize(
    ("tables", "how"), [("device", "eager"), ("host", "eager"), ("disk", "eager"), ("host", "compiled")]
)
def test_tensor_parallelism_of_two(folder, packed, wanted, tables, how):
    """In processes of their own: workers of one engine share what is in host memory."""
    here = folder if tables == "device" else packed
    command = [sys.executable, str(Path(__file__).parent / "two_workers.py"), str(here), tables, how]
    run = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert_same(wanted, found["answers"], 1e-4)
    memories = found["memories"]
    assert len(memories) == (2 if tables == "host" else 0) and len(set(memories)) <= 1


def test_a_half_checkpoint_is_refused(folder, tmp_path):
    here = tmp_path / "model"
    shutil.copytree(folder, here)
    state = load_file(here / "model.safetensors")
    gone = next(name for name in state if name.endswith(".table"))
    del state[gone]
    save_file(state, here / "model.safetensors", {"format": "pt"})
    with pytest.raises(RetokenError, match="is not in the checkpoint"), served(here):
        pass


def test_what_is_not_served_is_refused(folder):
    embeds = pytest.raises(RetokenError, match="enable_prompt_embeds is True")
    with embeds, served(folder, enable_prompt_embeds=True):
        pass
    unknown = pytest.raises(RetokenError, match="option of retoken is 'tabels'; accepted: tables")
    with unknown, served(folder, {"tabels": "disk"}):
        pass


def test_a_config_that_says_nothing_is_refused(folder, tmp_path):
    here = tmp_path / "model"
    shutil.copytree(folder, here)
    config = json.loads((here / "config.json").read_text())
    del config["retoken"]
    (here / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match=r"retoken"), served(here):
        pass
