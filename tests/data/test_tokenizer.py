"""The BPE trained here, and how many bytes of text each id of a tokenizer stands for."""

import os
import subprocess
import sys

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from retoken.data.tokenizer import (
    EOS,
    eos_of,
    fingerprint,
    load_tokenizer,
    token_bytes,
    token_texts,
    train_bpe,
)
from retoken.errors import ConfigError, DataError

TRAIN = """
import sys
from retoken.data.tokenizer import train_bpe
texts = sys.stdin.read().split("\\x00")
sys.stdout.write(train_bpe(texts, 500).backend_tokenizer.to_str())
"""


def test_bpe_is_byte_level_and_loses_nothing(documents):
    tokenizer = train_bpe(documents, 500)
    assert len(tokenizer) == 500
    assert tokenizer.eos_token == EOS
    text = "Ünseen 漢字 🙂\t\n  spaces, and the rest"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_bpe_does_not_depend_on_threads(documents):
    environment = {**os.environ, "RAYON_NUM_THREADS": "3", "TOKENIZERS_PARALLELISM": "true"}
    run = subprocess.run(
        [sys.executable, "-c", TRAIN],
        input="\0".join(documents).encode(),
        env=environment,
        capture_output=True,
        check=True,
    )
    assert run.stdout.decode() == train_bpe(documents, 500).backend_tokenizer.to_str()


def test_bytes_of_a_byte_level_vocabulary(documents):
    tokenizer = train_bpe(documents, 500)
    sizes = token_bytes(tokenizer.backend_tokenizer, 500)
    assert sizes[tokenizer.eos_token_id] == 0
    for text in ("naïve 漢字 🙂", *documents[:20]):
        assert sizes[tokenizer(text)["input_ids"]].sum() == len(text.encode())


def test_texts_of_a_byte_level_vocabulary_are_the_text(documents):
    tokenizer = train_bpe(documents, 500)
    texts = token_texts(tokenizer.backend_tokenizer, 501)
    assert {text for text in texts if text and len(text) == 1} == {bytes([byte]) for byte in range(256)}
    assert texts[tokenizer.eos_token_id] is None and texts[500] is None, "special, and unused"
    for text in ("naïve 漢字 🙂\t\n\x00", *documents[:20]):
        assert b"".join(texts[i] for i in tokenizer(text)["input_ids"]) == text.encode()


def test_bytes_of_a_sentencepiece_like_vocabulary():
    pieces = {"<s>": 0, "</s>": 1, "<0xE6>": 2, "▁the": 3, "é": 4, "▁▁": 5, "<0xZZ>x": 6}
    backend = Tokenizer(models.BPE(vocab=pieces, merges=[], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens([AddedToken("<tool>", special=False)])
    assert token_bytes(backend, 9).tolist() == [0, 0, 1, 4, 2, 2, 7, 6, 0]
    texts = [None, None, b"\xe6", b" the", "é".encode(), b"  ", b"<0xZZ>x", b"<tool>", None]
    assert token_texts(backend, 9) == texts


def test_bytes_of_a_wordpiece_vocabulary():
    backend = Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "run": 1, "##ning": 2}, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[UNK]"])
    assert token_bytes(backend, 3).tolist() == [0, 3, 4]
    assert token_texts(backend, 3) == [None, b" run", b"ning"]


def test_the_fingerprint_tells_tokenizers_and_end_tokens_apart(documents, tmp_path):
    for name, size in (("a", 400), ("b", 400), ("c", 401)):
        train_bpe(documents, size).save_pretrained(tmp_path / name)
    assert fingerprint(tmp_path / "a", 0) == fingerprint(tmp_path / "b", 0)
    assert fingerprint(tmp_path / "a", 0) != fingerprint(tmp_path / "c", 0)
    assert fingerprint(tmp_path / "a", 0) != fingerprint(tmp_path / "a", 1)


def test_a_vocabulary_without_room_for_bytes_is_refused():
    with pytest.raises(ConfigError, match="--vocab-size is 256; accepted: 257 or more"):
        train_bpe(["text"], 256)


def test_a_small_corpus_may_give_fewer_entries():
    assert len(train_bpe(["ab ab"], 400)) < 400


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"--tokenizer '.*nothing' cannot be loaded") as caught:
        load_tokenizer(str(tmp_path / "nothing"))
    assert len(str(caught.value).splitlines()) == 1


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    backend = Tokenizer(models.WordLevel(vocab={"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="has no eos_token"):
        load_tokenizer(str(tmp_path))


def test_a_unigram_tokenizer_loads_and_counts(documents, tmp_path):
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["</s>", "<unk>"], unk_token="<unk>")
    backend.train_from_iterator(documents, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>").save_pretrained(
        tmp_path
    )
    tokenizer = load_tokenizer(str(tmp_path))
    sizes = token_bytes(tokenizer.backend_tokenizer, len(tokenizer))
    text = "the water of the people"
    assert (
        sizes[tokenizer(text, add_special_tokens=False)["input_ids"]].sum() == len(text) + 1
    )  # its first space
    assert sizes[eos_of(tokenizer)] == 0
