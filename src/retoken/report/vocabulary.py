"""Token ids as text, from the tokenizer that a run left beside its model."""

from collections.abc import Callable, Sequence

from retoken.compare.runs import Run


def decoder(runs: Sequence[Run]) -> Callable[[int], str] | None:
    """Text of a token id with white space made visible; None where no run kept a fast tokenizer."""
    path = next((p for run in runs if (p := run.folder / "model" / "tokenizer.json").is_file()), None)
    if path is None:
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))

    def decode(token: int) -> str:
        text = tokenizer.decode([token], skip_special_tokens=False)
        if (
            not text or "\N{REPLACEMENT CHARACTER}" in text
        ):  # a part of a character: show the tokenizer's own spelling
            return tokenizer.id_to_token(token) or f"id {token}"
        return text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")

    return decode
