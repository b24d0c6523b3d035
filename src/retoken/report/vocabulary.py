"""Token ids as text, from the tokenizer that a run left beside its model."""

from collections.abc import Callable, Sequence

from retoken.compare.runs import Run
from retoken.data.tokenizer import visible


def decoder(runs: Sequence[Run]) -> Callable[[int], str] | None:
    """Text of a token id with white space made visible; None where no run kept a fast tokenizer."""
    path = next((p for run in runs if (p := run.folder / "model" / "tokenizer.json").is_file()), None)
    if path is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return lambda token: visible(tokenizer, token)
