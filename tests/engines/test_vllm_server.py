"""`retoken serve` as its clients see it: the official Python client completes, streams, chats, goes away."""

import os
import subprocess
import sys
import time
import urllib.request

import openai
import pytest
import torch
from engines_common import VOCAB, save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import retoken

PORT, KEY = 8471, "tests only"
CHAT = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
PROMPT = "where the rows of a token are"


def _tokenizer():
    """A token a byte."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(sorted(letters))}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([f"<{i}>" for i in range(256, VOCAB)])
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=CHAT)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = retoken.MoRTConfig(num_modulators=4, top_k=2)
    path = save(tmp_path_factory.mktemp("server") / "model", config)
    _tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def client(folder):
    words = ("--name", "tiny", "--port", str(PORT), "--eager", "--dtype", "float32", "--kv-cache-gib", "1")
    line = [sys.executable, "-m", "retoken", "serve", str(folder), *words, "--tables", "host"]
    environment = {**os.environ, "VLLM_API_KEY": KEY, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    server = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        _wait(server)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key=KEY, max_retries=0, timeout=120)
    finally:
        server.terminate()
        server.wait(60)


def _wait(server):
    until = time.monotonic() + 240
    while time.monotonic() < until:
        if server.poll() is not None:
            pytest.fail(server.stdout.read().decode()[-3000:])
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=2)
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail("the server was not up in time")


def _asked(client, **options):
    given = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **options}
    return client.completions.create(**given, extra_body={"ignore_eos": True, "return_token_ids": True})


def _running():
    page = urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=10).read().decode()
    line = next(x for x in page.splitlines() if x.startswith("vllm:num_requests_running"))
    return float(line.split()[-1])


def test_completes_as_transformers_does(client, folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    out = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert _asked(client).choices[0].token_ids == out[0, ids.shape[1] :].tolist()


def test_streams_what_it_completes(client):
    parts = [part.choices[0].text for part in _asked(client, stream=True)]
    assert len(parts) > 1 and "".join(parts) == _asked(client).choices[0].text


def test_chats(client):
    messages = [{"role": "user", "content": PROMPT}]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0)
    whole = _asked(client, prompt=f"user: {PROMPT}\nassistant:", max_tokens=8).choices[0].text
    assert whole.startswith(answer.choices[0].message.content)


def test_a_client_that_goes_away_is_let_go(client):
    stream = _asked(client, stream=True, max_tokens=150)
    next(iter(stream))
    stream.close()
    until = time.monotonic() + 20
    while _running() and time.monotonic() < until:
        time.sleep(0.1)
    assert _running() == 0
    assert _asked(client).choices[0].text == _asked(client).choices[0].text


def test_what_cannot_be_answered_is_refused(client):
    with pytest.raises(openai.BadRequestError):
        _asked(client, max_tokens=100_000)
    with pytest.raises(openai.NotFoundError):
        _asked(client, model="other")
    with pytest.raises(openai.AuthenticationError):
        _asked(client.with_options(api_key="wrong"))
    assert _asked(client).choices[0].text
