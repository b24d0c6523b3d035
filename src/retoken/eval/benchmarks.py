"""Which benchmarks there are by name: the paper's (Sec. 4.1), and the metric that each is quoted by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

PAPER = "paper"
EIGHT = ("arc_easy", "arc_challenge", "openbookqa", "boolq", "winogrande", "sciq", "hellaswag", "piqa")
"""Table 1, in its order."""

SUITES: dict[str, tuple[str, ...]] = {
    PAPER: EIGHT,
    "knowledge": ("mmlu", "triviaqa", "arc_challenge", "gpqa_main_zeroshot"),
    "reasoning": ("hellaswag", "bbh", "social_iqa"),
    "code": ("mbpp", "humaneval"),
    "math": ("minerva_math", "gsm8k", "drop"),
}
"""The eight, and the four areas of Tables 2 and 3, by the harness's names."""

LEFT_OUT = {"reasoning": "C3", "code": "LiveCodeBench"}
"""Benchmarks of the paper's areas that the harness does not have."""

# By characters of the answer, as these three are quoted; the paper names no normalisation.
_BY_LENGTH = ("arc_challenge", "hellaswag", "openbookqa")
_SHARES = ("acc", "exact_match", "em", "f1", "pass@1", "pass_at_1")


def expand(names: Iterable[str]) -> tuple[str, ...]:
    """The harness's names of what was asked for: suites opened, each name once, order kept."""
    return tuple(dict.fromkeys(task for name in names for task in SUITES.get(name, (name,))))


def headline(benchmark: str, metrics: Sequence[str]) -> str:
    """The metric a benchmark is quoted by.

    Args:
        benchmark: the harness's name.
        metrics: those it reports, in its order; at least one.

    Returns:
        acc_norm for arc_challenge, hellaswag and openbookqa; else acc; else the first there is.
    """
    wanted = ("acc_norm", "acc") if benchmark in _BY_LENGTH else ("acc",)
    return next((name for name in wanted if name in metrics), metrics[0])


def is_share(metric: str) -> bool:
    """Whether a metric is a share of items right, so that benchmarks may be averaged over it."""
    return metric.split(",")[0].startswith(_SHARES)
