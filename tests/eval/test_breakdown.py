"""Held-out loss by kind of token: against a loop over single tokens, and sums that add up to the whole."""

import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from retoken.data.tokenizer import token_texts
from retoken.data.tokens import TokenStore
from retoken.errors import ConfigError, DataError
from retoken.eval import Domains, evaluate_store, evaluate_text, open_checkpoint
from retoken.eval.breakdown import Observed
from retoken.eval.groups import KINDS, position_grouping, whole_grouping
from retoken.eval.material import store_material
from retoken.testing import tiny_model
from retoken.train.world import World

Run = Callable[[str], Path]


def _band(count: int) -> str:
    if count == 0:
        return "never"
    for low in (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000):
        high = 3 * low if str(low)[0] == "1" else 10 * low // 3
        if low <= count < high:
            return f"{low:,}–{high - 1:,}"
    raise AssertionError(count)


def _position(place: int, context: int) -> str:
    low = 0 if place == 0 else 2 ** (place.bit_length() - 1)
    high = min(2 * low, context) - 1 if low else 0
    return f"{low}" if high <= low else f"{low}–{high}"


def _part(before: bytes | None, text: bytes | None) -> str:
    """For the tiny corpus: lower-case ASCII words and full stops."""
    if text is None:
        return "special"
    letters = text.decode()
    if not letters.strip():
        return "space"
    if not any(letter.isalpha() for letter in letters):
        return "punctuation"
    inside = before is not None and before.decode()[-1].isalpha() and letters[0].isalpha()
    return "piece" if inside else "word"


def naive(run: Path, store: TokenStore, context: int) -> dict[str, dict[str, list[float]]]:
    """{kind: {group: [nats, tokens, bytes]}}, token by token."""
    model = open_checkpoint(str(run)).model
    counts, sizes = store.token_counts("train").tolist(), store.token_bytes().tolist()
    texts = token_texts(store.tokenizer().backend_tokenizer, store.manifest.vocab_size)
    split = store.split("val")
    found: dict[str, dict[str, list[float]]] = {kind: defaultdict(lambda: [0.0, 0, 0]) for kind in KINDS}
    for start in range(0, len(split) - context, context + 1):
        ids = split.read(start, context + 1).tolist()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids[:-1]])).logits[0].double()
        for place in range(context):
            before, target = ids[place], ids[place + 1]
            nats = float(torch.logsumexp(logits[place], 0) - logits[place, target])
            groups = {
                "band": _band(counts[target]),
                "row": _band(counts[before]),
                "position": _position(place, context),
                "part": _part(texts[before], texts[target]),
            }
            for kind, group in groups.items():
                sums = found[kind][group]
                sums[0], sums[1], sums[2] = sums[0] + nats, sums[1] + 1, sums[2] + sizes[target]
    return found


@pytest.mark.parametrize("context", [13, 32])
def test_every_group_has_the_loss_of_a_loop_over_single_tokens(
    tiny_run: Run, tiny_store: Path, context: int
) -> None:
    run = tiny_run("retoken")
    expected = naive(run, TokenStore.open(tiny_store), context)
    domains = Domains(data=(tiny_store,), by=KINDS, context_length=context, batch_size=5)
    (found,) = domains.measure(open_checkpoint(str(run)), World())
    assert set(found.by) == set(KINDS)
    for kind, groups in found.by.items():
        assert {each.group for each in groups} == set(expected[kind])
        for each in groups:
            nats, tokens, size = expected[kind][each.group]
            assert each.tokens == tokens
            assert each.val_loss == pytest.approx(nats / tokens, rel=1e-5)
            bits = each.val_bits_per_byte
            assert bits == (pytest.approx(nats / math.log(2) / size, rel=1e-5) if size else None)


@pytest.mark.parametrize("max_tokens", [0, 500])
def test_groups_of_every_kind_add_up_to_plain_held_out_loss(
    tiny_run: Run, tiny_store: Path, tmp_path: Path, max_tokens: int
) -> None:
    loaded = open_checkpoint(str(tiny_run("mort")))
    text = tmp_path / "text.txt"
    text.write_text("the cat sees a house; naïve kings run over 12 trees.\n" * 9, encoding="utf-8")
    plain = [
        evaluate_store(loaded, tiny_store, World(), max_tokens=max_tokens),
        evaluate_text(loaded, text, World(), max_tokens=max_tokens),
    ]
    found = Domains(data=(tiny_store,), text=(text,), by=KINDS, max_tokens=max_tokens).measure(
        loaded, World()
    )
    assert [each.domain for each in found] == ["store", "text.txt"]
    for domain, alone in zip(found, plain, strict=True):
        assert domain.held_out == alone
        for groups in domain.by.values():
            assert sum(each.tokens for each in groups) == alone.tokens
            assert sum(each.share for each in groups) == pytest.approx(1)
            nats = sum(each.val_loss * each.tokens for each in groups)
            assert nats == pytest.approx(alone.val_loss * alone.tokens, rel=1e-9)


def test_the_other_checkpoint_has_its_own_loss_on_the_same_tokens(tiny_run: Run, tiny_store: Path) -> None:
    ours, theirs = (open_checkpoint(str(tiny_run(name))) for name in ("retoken", "baseline"))
    domains = Domains(data=(tiny_store,), by=("part",))
    alone = [
        {group.group: group.val_loss for group in domains.measure(each, World())[0].by["part"]}
        for each in (ours, theirs)
    ]
    (found,) = domains.measure(ours, World(), theirs)
    assert found.against == evaluate_store(theirs, tiny_store, World())
    assert found.difference is not None and found.unit == "document" and found.units > 10
    assert found.difference.difference == pytest.approx(found.held_out.val_loss - found.against.val_loss)
    for group in found.by["part"]:
        assert group.against is not None
        assert group.val_loss == alone[0][group.group]
        assert group.against.val_loss == alone[1][group.group]
        assert group.against.difference == pytest.approx(group.val_loss - group.against.val_loss)


def test_a_checkpoint_against_itself_is_no_different(tiny_run: Run, tiny_store: Path) -> None:
    loaded = open_checkpoint(str(tiny_run("mort")))
    (found,) = Domains(data=(tiny_store,), by=KINDS).measure(loaded, World(), loaded)
    pairs = [found.difference, *(each.against for groups in found.by.values() for each in groups)]
    assert all(pair and pair.difference == 0 and pair.low in (0, None) for pair in pairs)


@pytest.mark.parametrize("max_tokens", [0, 700])
def test_a_stores_units_are_its_documents(tiny_store: Path, max_tokens: int) -> None:
    store = TokenStore.open(tiny_store)
    material = store_material(tiny_store, 20, max_tokens=max_tokens, batch_size=3)
    split, window = store.split("val"), 21
    total = len(split) // window
    count = max_tokens // window if max_tokens else total
    ends = (split.read(0, len(split)) == store.manifest.eos_id).cumsum()
    before = 0
    for windows in material.batches():
        units = material.units(before, windows)
        for row in range(len(windows)):
            start = (before + row) * total // count * window
            for place in range(20):
                at = start + place + 1
                assert units[row, place] == (ends[at - 1] if at else 0)
        before += len(windows)
    assert before == count


def test_processes_that_share_the_batches_have_the_sums_of_one(tiny_store: Path) -> None:
    material = store_material(tiny_store, 20, batch_size=3)
    groupings = [whole_grouping(), position_grouping(20)]

    def observed(ranks: tuple[int, ...]) -> list[torch.Tensor]:
        sums = Observed(groupings, material.units, material.unit_count, material.token_bytes)
        for number, windows in enumerate(material.batches()):
            nats = torch.sin(windows[:, 1:].double())
            sums(windows, nats if number % 2 in ranks else None)
        return [torch.from_numpy(each.nll_UG.sum(0)) for each in sums.summed(World())]

    for both, first, second in zip(observed((0, 1)), observed((0,)), observed((1,)), strict=True):
        torch.testing.assert_close(both, first + second)
        assert (first != both).any() and (second != both).any()


def test_bands_are_counted_where_they_are_asked_to_be(
    tiny_run: Run, tiny_store: Path, tmp_path: Path
) -> None:
    run = tiny_run("mort")
    loaded = open_checkpoint(str(run))
    domains = Domains(data=(tiny_store,), by=("band",))
    assert domains.counts_of(loaded).folder == tiny_store
    alone = open_checkpoint(str(_model_alone(run, tmp_path)))
    assert domains.counts_of(alone).folder == tiny_store, "the only store there is"
    text = tmp_path / "text.txt"
    text.write_text("a cat sees a dog")
    with pytest.raises(ConfigError, match="lies in no run folder, and --data names 0 stores"):
        Domains(text=(text,), by=("row",)).measure(alone, World())
    (found,) = Domains(text=(text,), by=("row",), counts=tiny_store).measure(alone, World())
    assert found.by["row"]


def _model_alone(run: Path, folder: Path) -> Path:
    alone = folder / "model"
    loaded = open_checkpoint(str(run))
    loaded.model.save_pretrained(alone)
    loaded.need_tokenizer().save_pretrained(alone)
    return alone


def test_checkpoints_that_cannot_be_paired_are_refused(
    tiny_run: Run, tiny_store: Path, tmp_path: Path
) -> None:
    loaded, text = open_checkpoint(str(tiny_run("mort"))), tmp_path / "text.txt"
    text.write_text("a cat sees a dog " * 20)
    longer = tmp_path / "longer"
    tiny_model("llama", vocab_size=300).save_pretrained(longer)
    with pytest.raises(
        ConfigError, match=r"a context of 32 and .*longer with \d+; accepted: the same for both"
    ):
        Domains(data=(tiny_store,)).measure(loaded, World(), open_checkpoint(str(longer)))
    small = tmp_path / "small"
    tiny_model("llama").save_pretrained(small)
    with pytest.raises(DataError, match="accepted: up to the model's 131"):
        Domains(text=(text,), context_length=16).measure(loaded, World(), open_checkpoint(str(small)))
    other = _model_alone(tiny_run("baseline"), tmp_path)
    tokenizer = loaded.need_tokenizer()
    tokenizer.add_tokens(["a word of its own"])
    tokenizer.save_pretrained(other)
    loaded = open_checkpoint(str(tiny_run("mort")))
    with pytest.raises(DataError, match="another tokenizer"):
        Domains(text=(text,), context_length=16).measure(loaded, World(), open_checkpoint(str(other)))


def test_domains_of_one_name_are_told_apart(tiny_run: Run, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/text.txt", "b/text.txt", "other.txt")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.write_text("a cat sees a dog")
    found = Domains(text=tuple(paths)).measure(open_checkpoint(str(tiny_run("mort"))), World())
    assert [each.domain for each in found] == [str(paths[0]), str(paths[1]), "other.txt"]
