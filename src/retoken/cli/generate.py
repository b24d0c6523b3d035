"""`retoken generate`: text from a checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from retoken.cli.options import as_json
from retoken.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from retoken.eval import Loaded

DEFAULT_NEW_TOKENS = 100


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Text from a checkpoint, through the generation of transformers."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """A run folder, a checkpoint in it, a folder written by save_pretrained, or hf:NAME."""
    prompt: str = ""
    """What the text starts with; empty: from the start of a document."""
    chat: bool = False
    """Talk: the prompt is your first turn, each line of standard input the next."""
    max_new_tokens: int = 0
    """Tokens to generate at most; 0: 100, or as many as the model has positions for."""
    temperature: float = 0.8
    """Sampling temperature; 0 takes the likeliest token each time."""
    top_p: float = 1.0
    """Sample among the likeliest tokens that hold this much probability together."""
    seed: int = 0
    """Of the sampling: the same seed gives the same text on the same machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; "auto": a GPU where there is one."""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves PyTorch's choice."""
    tables: Literal["", "device", "host", "disk"] = ""
    """Where a model folder's rows are to live; empty: as they are saved."""
    rows_path: Path | None = None
    """The packed file to serve rows from, or to write first, with --tables disk."""
    verify: Path | None = None
    """A model folder with tables: every row that is fetched is recomputed from it, and must be the same."""
    json: bool = False
    """Print one JSON object instead of the text."""

    def run(self) -> int:
        """Generate and print; returns the exit code."""
        self._check()
        from transformers import set_seed

        from retoken.cli.placement import say_placement
        from retoken.eval import open_checkpoint
        from retoken.train.world import open_world

        with open_world(self.device, self.threads) as world:
            loaded = open_checkpoint(
                self.checkpoint,
                tables=self.tables or None,
                rows_path=self.rows_path,
                verify=self.verify,
                device=world.device,
            )
            say_placement(loaded.model, aloud=world.leads and not self.json and bool(self.tables))
            loaded.model.to(world.device)  # pyright: ignore
            set_seed(self.seed)
            told = self._talk(loaded) if self.chat else self._write(loaded)
        if self.json:
            print(as_json({"checkpoint": loaded.name, **told, "seed": self.seed}))
        return 0

    def _write(self, loaded: Loaded) -> dict[str, Any]:
        tokenizer: Any = loaded.need_tokenizer()
        ids = self._prompt_ids(tokenizer)
        new = self._continue(loaded, ids, skip_prompt=not self.prompt)
        text = tokenizer.decode(new, skip_special_tokens=True)
        counts = {"prompt_tokens": ids.shape[1], "new_tokens": len(new)}
        return {"prompt": self.prompt, "text": text, **counts}

    def _talk(self, loaded: Loaded) -> dict[str, Any]:
        from retoken.cli.chat import talk

        def answer(ids: Tensor) -> Tensor:
            return self._continue(loaded, ids, skip_prompt=True)

        return {"messages": talk(loaded.need_tokenizer(), self.prompt, answer)}

    def _continue(self, loaded: Loaded, ids: Tensor, skip_prompt: bool) -> Tensor:
        """New ids [N] after ids [1, T], printed as they come unless a report is wanted."""
        from transformers import TextStreamer

        tokenizer, model = loaded.need_tokenizer(), loaded.model
        skip: dict[str, Any] = {"skip_prompt": skip_prompt, "skip_special_tokens": self.chat}
        streamer = None if self.json else TextStreamer(tokenizer, **skip)  # pyright: ignore
        options = self._options(loaded, ids.shape[1])
        out: Any = model.generate(ids.to(model.device), streamer=streamer, **options)  # pyright: ignore
        return out[0, ids.shape[1] :]

    def _prompt_ids(self, tokenizer: Any) -> Tensor:
        """[1, T] ids, at least one: an empty prompt becomes the token that starts a text."""
        import torch

        ids = tokenizer(self.prompt)["input_ids"]
        if not ids:
            start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
            if start is None:
                raise ConfigError(
                    "--prompt is empty and the tokenizer has no token to start a text; accepted: some text"
                )
            ids = [start]
        return torch.tensor([ids])

    def _options(self, loaded: Loaded, prompt_tokens: int) -> dict[str, Any]:
        import torch

        positions, new = loaded.positions or math.inf, self.max_new_tokens
        if prompt_tokens + max(new, 1) > positions:
            raise ConfigError(
                f"--prompt is {prompt_tokens} tokens and --max-new-tokens {new or DEFAULT_NEW_TOKENS}; "
                f"accepted: together up to the model's {positions} positions"
            )
        tokenizer: Any = loaded.need_tokenizer()
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        sampling = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {
            "attention_mask": torch.ones(1, prompt_tokens, dtype=torch.long, device=loaded.model.device),
            "max_new_tokens": new or int(min(DEFAULT_NEW_TOKENS, positions - prompt_tokens)),
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": pad,
            **(sampling if self.temperature else {"do_sample": False}),
        }

    def _check(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"--temperature is {self.temperature}; accepted: 0 or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top-p is {self.top_p}; accepted: above 0 and up to 1")
        for name in ("max_new_tokens", "seed", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: 0 or more")
