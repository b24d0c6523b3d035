"""A thousand mixed requests of one server: `python studies/serving/soak.py --url URL --model NAME --pid PID`.

Completions, streams, chats, several answers, log-probabilities, streams that are dropped midway, and bodies
that are none, 32 at a time, through the official client. Every greedy answer must be the one that the same
prompt had when the server had nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import random
import time
from collections import Counter
from pathlib import Path

import httpx
from openai import AsyncOpenAI, BadRequestError

WORDS = (
    "The history of the state shows that people who work together can build what nobody expected of them"
).split()
MALFORMED = (
    b"{",
    b"[]",
    b'{"model": 5, "prompt": "x"}',
    b'{"prompt": {"a": 1}, "max_tokens": "many"}',
    b'{"prompt": "x", "max_tokens": -4}',
    b'{"prompt": "x", "temperature": -1}',
    b'{"prompt": [999999999]}',
)


class Soak:
    """The requests, and what they should answer."""

    def __init__(self, url: str, model: str, key: str, tokens: int) -> None:
        key = key or "none"  # a header cannot be empty
        self.client = AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=600)
        self.raw = httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=600)
        self.model, self.tokens = model, tokens
        draw = random.Random(0)
        self.prompts = [" ".join(draw.sample(WORDS, draw.randint(3, 15))) for _ in range(24)]
        self.greedy = {"model": model, "max_tokens": tokens, "temperature": 0}
        self.wanted: dict[tuple[str, str], str] = {}
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def learn(self) -> None:
        """The answer of each prompt, one after the other."""
        for prompt in self.prompts:
            for kind in ("completion", "chat"):
                self.wanted[kind, prompt] = await getattr(self, f"ask_{kind}")(prompt)

    async def ask_completion(self, prompt: str) -> str:
        """Plain."""
        return (await self.client.completions.create(prompt=prompt, **self.greedy)).choices[0].text

    async def ask_chat(self, prompt: str) -> str:
        """As a chat's first turn."""
        messages = [{"role": "user", "content": prompt}]
        answer = await self.client.chat.completions.create(messages=messages, **self.greedy)  # pyright: ignore
        return answer.choices[0].message.content or ""

    async def completion(self, prompt: str) -> None:
        """The same answer as alone."""
        self._same("completion", prompt, await self.ask_completion(prompt))

    async def chat(self, prompt: str) -> None:
        """The same answer as alone."""
        self._same("chat", prompt, await self.ask_chat(prompt))

    async def stream(self, prompt: str) -> None:
        """Piece by piece, the same answer."""
        stream = await self.client.completions.create(prompt=prompt, stream=True, **self.greedy)
        text = "".join([part.choices[0].text async for part in stream])
        self._same("completion", prompt, text)

    async def several(self, prompt: str) -> None:
        """Two sampled answers, with log-probabilities that are some."""
        options = {**self.greedy, "temperature": 1.0, "n": 2, "logprobs": 1}
        answer = await self.client.completions.create(prompt=prompt, **options)
        found = [x for choice in answer.choices for x in choice.logprobs.token_logprobs]  # pyright: ignore
        if len(answer.choices) != 2 or not found or any(x is None or x > 0 for x in found):
            self.wrong.append(f"several: {len(answer.choices)} answers, log-probabilities {found[:4]}")

    async def dropped(self, prompt: str) -> None:
        """A stream whose reader goes away after two pieces."""
        options = {**self.greedy, "max_tokens": 8 * self.tokens}
        stream = await self.client.completions.create(prompt=prompt, stream=True, **options)
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == 2:
                break
        await stream.close()

    async def malformed(self, prompt: str) -> None:
        """Refused with a reason, and nothing worse."""
        body = random.Random(prompt).choice(MALFORMED)
        answer = await self.raw.post("/v1/completions", content=body)
        if not 400 <= answer.status_code < 500:
            self.wrong.append(f"malformed {body!r}: {answer.status_code} {answer.text[:100]}")
        try:
            await self.client.completions.create(model=self.model, prompt=prompt, max_tokens=10**9)
            self.wrong.append("a length no model has was accepted")
        except BadRequestError:
            pass

    def _same(self, kind: str, prompt: str, text: str) -> None:
        if text != self.wanted[kind, prompt]:
            self.wrong.append(f"{kind} {prompt!r}: {text!r}; alone: {self.wanted[kind, prompt]!r}")

    async def one(self, number: int, gate: asyncio.Semaphore) -> None:
        """One request of a kind and a prompt that its number gives."""
        draw = random.Random(number)
        kind = draw.choices(
            ["completion", "chat", "stream", "several", "dropped", "malformed"], [4, 3, 3, 2, 2, 2]
        )[0]
        async with gate:
            try:
                await getattr(self, kind)(draw.choice(self.prompts))
                self.done[kind] += 1
            except Exception as error:
                self.wrong.append(f"{kind}: {type(error).__name__}: {str(error)[:200]}")


def memory_mb(pid: int) -> float:
    """Resident memory of a process and all that it started."""
    parents, sizes = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        own = int(stat.parent.name)
        try:
            parents[own] = int(stat.read_text().rsplit(")", 1)[1].split()[1])
            sizes[own] = int((stat.parent / "statm").read_text().split()[1]) * mmap.PAGESIZE
        except (OSError, IndexError):  # it has just ended
            continue
    family = {pid}
    while more := {own for own, parent in parents.items() if parent in family} - family:
        family |= more
    return sum(sizes.get(own, 0) for own in family) / 1e6


async def soak(asked: argparse.Namespace) -> dict[str, object]:
    """All of it; what happened."""
    run = Soak(asked.url, asked.model, asked.key, asked.tokens)
    await run.learn()
    gate, memory = asyncio.Semaphore(asked.concurrency), [memory_mb(asked.pid)]
    started = time.perf_counter()
    for quarter in range(4):
        size = asked.requests // 4
        numbers = range(quarter * size, (quarter + 1) * size)
        await asyncio.gather(*(run.one(number, gate) for number in numbers))
        memory.append(memory_mb(asked.pid))
        print(f"{(quarter + 1) * size} requests, {len(run.wrong)} wrong, {memory[-1]:,.0f} MB", flush=True)
    up = (await run.raw.get("/health")).status_code == 200
    return {
        "done": dict(run.done),
        "wrong": run.wrong[:20],
        "wrong_count": len(run.wrong),
        "memory_mb": [round(x) for x in memory],
        "seconds": round(time.perf_counter() - started),
        "up": up,
    }


def main() -> None:
    """Ask the server, print and exit 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--key", default="")
    parser.add_argument("--pid", type=int, required=True, help="of the server, whose memory is watched")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=12)
    found = asyncio.run(soak(parser.parse_args()))
    print(json.dumps(found, indent=1))
    raise SystemExit(bool(found["wrong_count"]) or not found["up"])


if __name__ == "__main__":
    main()
