"""Which group each predicted token is of, by hand."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

from retoken.data.tokenizer import token_texts, train_bpe
from retoken.eval.groups import Grouping, band_grouping, position_grouping, row_grouping
from retoken.eval.parts import part_grouping

TEXT = 'It\'s 1905. "The naïve king of Zürich," he said, "didn\'t run."\n\nHe re-ran 22 dogs — twice.'


def names(grouping: Grouping, ids: list[int]) -> list[str]:
    """The group of each predicted token of one window."""
    return [grouping.labels[group] for group in grouping.assign(torch.tensor([ids]))[0].tolist()]


def test_bands_widen_threefold_from_never() -> None:
    grouping = band_grouping(torch.tensor([0, 1, 2, 3, 9, 10, 29, 30, 99, 100, 2999, 3000]))
    expected = ["1–2", "1–2", "3–9", "3–9", "10–29", "10–29", "30–99", "30–99", "100–299", "1,000–2,999"]
    assert names(grouping, [5, 0, *range(1, 11), 11]) == ["never", *expected, "3,000–9,999"]
    assert len(set(grouping.labels)) == len(grouping.labels)
    assert names(band_grouping(torch.zeros(3, dtype=torch.int64)), [0, 1, 2]) == ["never", "never"]


def test_a_row_is_of_the_token_that_is_predicted_from() -> None:
    counts_V = torch.tensor([0, 1, 50])
    assert names(row_grouping(counts_V), [2, 0, 1, 2]) == ["30–99", "never", "1–2"]
    assert names(band_grouping(counts_V), [2, 0, 1, 2]) == ["never", "1–2", "30–99"]


@pytest.mark.parametrize("context", [1, 2, 7, 8, 13])
def test_positions_double_up_to_the_context(context: int) -> None:
    grouping = position_grouping(context)
    found = names(grouping, [0] * (context + 1))
    for place, label in enumerate(found):
        low, _, high = label.partition("–")
        assert int(low) <= place <= int(high or low) < context
        assert place == 0 or int(low) == 2 ** (place.bit_length() - 1)
    assert dict.fromkeys(found) == dict.fromkeys(grouping.labels)
    assert names(grouping, [0, 0]) == ["0"], "a shorter window"


def test_parts_of_a_byte_level_vocabulary() -> None:
    tokenizer = train_bpe([TEXT * 3, "The king said it. He ran; she said he'd run with dogs."] * 20, 340)
    backend = tokenizer.backend_tokenizer
    grouping = part_grouping(token_texts(backend, len(tokenizer)))
    eos = tokenizer.eos_token_id
    ids = [eos, *tokenizer(TEXT)["input_ids"], eos]
    pieces = token_texts(backend, len(tokenizer))
    spans = list(zip([pieces[i] for i in ids[1:]], names(grouping, ids), strict=True))
    assert spans[-1] == (None, "special")
    # Whatever the merges, letters start a word just where no letter or apostrophe stands before them.
    before = b""
    for text, part in spans[:-1]:
        assert text is not None
        try:
            letters = text.decode()
        except UnicodeDecodeError:
            assert part == "bytes"
        else:
            whole = before.decode(errors="replace")
            inside = bool(whole) and (whole[-1].isalnum() or whole[-1] in "'�")
            if any(letter.isalpha() for letter in letters):
                assert part == ("piece" if inside and not letters[0].isspace() else "word"), (whole, letters)
            else:
                kinds = {"space": letters.isspace(), "digits": any(each.isdigit() for each in letters)}
                assert part == next((kind for kind, yes in kinds.items() if yes), "punctuation")
        before += text
    assert {part for _, part in spans} >= {"word", "piece", "digits", "punctuation", "space", "special"}


def test_letters_behind_a_quotation_mark_or_a_line_end_begin_a_word() -> None:
    grouping = part_grouping([b'"', b"The", b"\n", b" king", b"s", b"'", b"'s", b"(a", None, b" '", b"\xc3"])
    quote, the, line, king, s, apostrophe, own, bracket, special, opening, half = range(11)
    ids = [
        quote,
        the,
        s,
        line,
        the,
        king,
        s,
        own,
        apostrophe,
        s,
        bracket,
        special,
        the,
        opening,
        the,
        half,
        s,
    ]
    assert names(grouping, ids) == [
        "word", "piece", "space", "word", "word", "piece", "piece", "punctuation", "piece", "word", "special",
        "word", "punctuation", "word", "bytes", "piece",
    ]  # fmt: skip


def test_parts_of_a_sentencepiece_like_vocabulary() -> None:
    pieces = [
        "</s>",
        "▁the",
        "ing",
        "▁",
        "▁▁",
        "<0x0A>",
        "<0xC3>",
        "▁19",
        "7",
        ",",
        "▁(",
        "é",
        "▁é",
        "の",
        "▁≤",
    ]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    backend.add_special_tokens(["</s>"])
    grouping = part_grouping(token_texts(backend, len(pieces) + 1))
    assert names(grouping, [0, *range(1, len(pieces)), len(pieces)]) == [
        "word", "piece", "space", "space", "space", "bytes", "digits", "digits", "punctuation", "punctuation",
        "word", "word", "piece", "punctuation", "special",
    ]  # fmt: skip


def test_parts_of_a_wordpiece_vocabulary() -> None:
    vocabulary = {"[UNK]": 0, "run": 1, "##ning": 2, ".": 3, "12": 4, "##th": 5}
    backend = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(["[UNK]"])
    grouping = part_grouping(token_texts(backend, 6))
    assert names(grouping, [0, 1, 1, 2, 3, 1, 4, 5]) == [
        "word", "word", "piece", "punctuation", "word", "digits", "piece"
    ]  # fmt: skip
