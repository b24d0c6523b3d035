"""The figure of held-out loss by kind of token."""

import re

from retoken.eval import DomainLoss, HeldOut
from retoken.eval.breakdown import GroupLoss
from retoken.eval.pairing import GroupDifference
from retoken.report.breakdown import breakdown_panel
from retoken.report.standalone import standalone


def _difference(value: float, known: bool = True) -> GroupDifference:
    low, high = (value - 0.1, value + 0.1) if known else (None, None)
    return GroupDifference(val_loss=3 - value, difference=value, low=low, high=high, share=0.5)


def _domain(name: str, groups: dict[str, int], paired: bool) -> DomainLoss:
    held_out = HeldOut(
        val_loss=3.0, val_bits_per_byte=1.0, perplexity=20.1, tokens=90, bytes=300, context_length=8
    )
    by = [
        GroupLoss(
            group=group,
            number=number,
            tokens=9,
            share=0.1,
            val_loss=3.0 + number,
            val_bits_per_byte=1.0,
            against=_difference(-0.01 * number, group != "tiny") if paired else None,
        )
        for group, number in groups.items()
    ]
    return DomainLoss(
        domain=name, on=name, held_out=held_out, against=held_out if paired else None,
        difference=_difference(-0.02) if paired else None, unit="document", units=90, by={"part": by},
    )  # fmt: skip


def _labels(svg: str) -> list[str]:
    return re.findall(r"<text [^>]*>([^<]*)</text>", svg)


def test_groups_stand_in_their_kinds_order_whichever_domain_has_them() -> None:
    domains = [_domain("one", {"word": 0, "space": 4}, False), _domain("two", {"digits": 2}, False)]
    drawn = standalone(breakdown_panel(domains, False))
    labels = _labels(drawn)
    there = [label for label in labels if label in ("all tokens", "word", "digits", "space")]
    assert there == ["all tokens", "word", "digits", "space"]
    assert "part of the vocabulary" in labels and {"one", "two"} <= set(labels)
    assert "#fe" not in drawn, "every colour is a variable"


def test_a_group_too_small_for_an_interval_is_left_out_of_differences() -> None:
    paired = breakdown_panel([_domain("one", {"word": 1, "tiny": 2}, True)], True)
    assert "tiny" not in _labels(str(paired.svg)) and "word" in _labels(str(paired.svg))
    alone = breakdown_panel([_domain("one", {"word": 1, "tiny": 2}, False)], False)
    assert "tiny" in _labels(str(alone.svg))
