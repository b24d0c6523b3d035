"""A loaded checkpoint as the harness sees one. Imported only where lm-eval is installed."""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM

from retoken.eval.answers import Answers, Key, key_of
from retoken.eval.harness import quiet
from retoken.eval.loading import Loaded
from retoken.eval.shared_contexts import batches, log_likelihoods, questions

Progress = Callable[[int, int], None]
"""Told (answers there, answers wanted)."""


class HarnessModel(HFLM):
    """The harness's own wrapper of a transformers model; keeps answers as they come, and asks none twice."""

    def __init__(
        self, loaded: Loaded, *, batch_size: int, context_length: int = 0, share_contexts: bool = True
    ) -> None:
        """Wraps the model as it is, where it is.

        Args:
            loaded: a checkpoint with its tokenizer.
            batch_size: requests of a forward pass.
            context_length: tokens of a request, at most; 0: what the harness reads from the model's config.
            share_contexts: compute the context of several requests once, where the model may use a cache;
                False: every pass is the harness's own.
        """
        tokenizer = loaded.need_tokenizer()
        with quiet():
            super().__init__(
                pretrained=loaded.model,
                tokenizer=tokenizer,
                backend="causal",
                batch_size=batch_size,
                max_length=context_length or None,
                # Of bfloat16 logits a log-likelihood has two digits otherwise; float32 ones stay as they are.
                softmax_dtype="float32",
            )
        # Engram's passes cannot go on from a cache.
        self.share_contexts = share_contexts and loaded.model.config.get_text_config().use_cache
        self._answers: Answers | None = None
        self._cut: set[Key] = set()
        self._on_progress: Progress = lambda done, total: None
        self._done = self._wanted = 0
        self.set_cache_hook(self)

    def keep(self, answers: Answers, on_progress: Progress) -> None:
        """From here on keep answers there."""
        self._answers, self._on_progress = answers, on_progress
        self._cut.clear()

    def add_partial(self, kind: str, arguments: Sequence[Any], answer: Any) -> None:
        """The harness's hook: told of each answer as soon as it is known."""
        if self._answers is not None:
            key = key_of(kind, arguments)
            self._answers.add(key, answer, cut=key in self._cut)
        self._done += 1
        self._on_progress(self._done, self._wanted)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        """As the harness's, for the requests that have no answer yet."""
        return self._answered("loglikelihood", requests, super().loglikelihood)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        """As the harness's, for the requests that have no answer yet."""
        return self._answered("loglikelihood_rolling", requests, super().loglikelihood_rolling)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[Any]:
        """As the harness's, for the requests that have no answer yet."""
        if any(request.args[1].get("do_sample") for request in requests):
            return super().generate_until(requests, disable_tqdm=True)  # each asking draws another text
        return self._answered("generate_until", requests, super().generate_until)

    def _answered(self, kind: str, requests: list[Any], compute: Callable[..., list[Any]]) -> list[Any]:
        assert self._answers is not None
        keys = [key_of(kind, request.args) for request in requests]
        missing = [number for number, key in enumerate(keys) if key not in self._answers]
        self._done, self._wanted = len(keys) - len(missing), len(keys)
        self._on_progress(self._done, self._wanted)
        found: dict[int, Any] = {}
        if missing:
            fresh = compute([requests[number] for number in missing], disable_tqdm=True)
            found = dict(zip(missing, fresh, strict=True))
        return [found[number] if number in found else self._answers[key] for number, key in enumerate(keys)]

    def _loglikelihood_tokens(self, requests: list[Any], *args: Any, **options: Any) -> list[Any]:
        room = self.max_length + 1
        fits = [len(context) + len(continuation) <= room for _, context, continuation in requests]
        for (asked, *_), whole in zip(requests, fits, strict=True):
            if asked is not None and not whole:
                self._cut.add(key_of("loglikelihood", asked))
        found = self._shared(requests, fits) if self.share_contexts else {}
        rest = [number for number in range(len(requests)) if number not in found]
        own = super()._loglikelihood_tokens([requests[number] for number in rest], *args, **options)
        found |= dict(zip(rest, own, strict=True))
        return [found[number] for number in range(len(requests))]

    def _shared(self, requests: list[Any], fits: list[bool]) -> dict[int, tuple[float, bool]]:
        """Answers to those requests whose context another one has, by their numbers."""
        whole = [number for number, each in enumerate(fits) if each]
        asked = questions([requests[number][1:] for number in whole], self.batch_size)
        several = [question for question in asked if len(question.continuations) > 1]
        found: dict[int, tuple[float, bool]] = {}
        for batch in batches(several, self.batch_size):
            numbers = [whole[number] for question in batch for number in question.numbers]
            for number, answer in zip(numbers, log_likelihoods(self.model, batch), strict=True):
                found[number] = answer
                if (words := requests[number][0]) is not None:
                    self.cache_hook.add_partial("loglikelihood", words, answer)
        return found
