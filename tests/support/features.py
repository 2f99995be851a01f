"""What a request may ask for, feature by feature, and what each claims of its answer whatever else is asked for.

The model is that of `byte_model.py`: a token is a character. A claim may ask again, with the other feature still on.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import pytest

from mainspring.server.watermark import is_green
from tests.support.byte_model import END, ids_of

PATTERN = "[a-z]{5,12}"
TOOL = {
    "type": "function",
    "function": {
        "name": "say",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "pattern": "^[a-z]{4,8}$"}},
            "required": ["word"],
            "additionalProperties": False,
        },
    },
}
WIDTH, NUM_CHOICES = 4, 3
BATCH_TOKENS = 64
"""What a step of the server computes at most."""
BLOCK = 16


@dataclass(slots=True)
class Choice:
    """One answer."""

    text: str = ""
    arguments: str = ""
    """Of a call."""
    tokens: list[int] = field(default_factory=list)
    """Known with log-probabilities only."""
    logprobs: list[float] = field(default_factory=list)
    tops: list[list[float]] = field(default_factory=list)

    @property
    def word(self) -> str:
        """What the model was free to say."""
        return str(json.loads(self.arguments)["word"]) if self.arguments else self.text

    @property
    def mean_logprob(self) -> float:
        return sum(self.logprobs) / len(self.logprobs)


@dataclass(slots=True)
class Run:
    """A request that was answered."""

    client: httpx.Client
    names: frozenset[str]
    body: dict[str, Any]
    plain: httpx.Client | None = None
    """Of a server that does not speculate, where the other does."""
    choices: list[Choice] = field(default_factory=list)
    cached_tokens: int = 0
    prompt_logprobs: list[dict[str, Any] | None] | None = None

    def again(self, without: tuple[str, ...] = (), **changes: Any) -> Run:
        """The same request but for some fields."""
        body = {key: value for key, value in self.body.items() if key not in without} | changes
        return ask(self.client, self.names, body, self.plain)

    @property
    def chat(self) -> bool:
        return "messages" in self.body

    def prompt(self) -> str:
        """As the model reads it."""
        return f"[tools][user]{self.body['messages'][0]['content']}[assistant]" if self.chat else self.body["prompt"]

    def with_logprobs(self, number: int) -> dict[str, Any]:
        return {"logprobs": True, "top_logprobs": number} if self.chat else {"logprobs": number}

    def scores(self, tokens: list[int]) -> list[float | None]:
        """The model's own log-probabilities of a text that is given."""
        body = {"prompt": tokens, "max_tokens": 0, "echo": True, "logprobs": 0}
        answer = self.client.post("/v1/completions", json=body)
        found: list[float | None] = answer.raise_for_status().json()["choices"][0]["logprobs"]["token_logprobs"]
        return found


class RefusedError(Exception):
    """The server refused, with its message."""


def ask(client: httpx.Client, names: frozenset[str], body: dict[str, Any], plain: httpx.Client | None = None) -> Run:
    """Raises `RefusedError`."""
    route = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    response = client.post(route, json=body)
    if response.status_code == 400:
        raise RefusedError(response.json()["error"]["message"])
    response.raise_for_status()
    run = Run(client, names, body, plain)
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
    events = [json.loads(line) for line in lines] if body.get("stream") else [response.json()]
    choices: dict[int, Choice] = defaultdict(Choice)
    for event in events:
        if "error" in event:
            raise RuntimeError(event["error"])
        for entry in event["choices"]:
            _read(choices[entry["index"]], entry)
            run.prompt_logprobs = entry.get("prompt_logprobs", run.prompt_logprobs)
        run.prompt_logprobs = event.get("prompt_logprobs", run.prompt_logprobs)
        if event.get("usage"):
            run.cached_tokens = event["usage"]["prompt_tokens_details"]["cached_tokens"]
    run.choices = [choices[index] for index in sorted(choices)]
    return run


def _read(choice: Choice, entry: dict[str, Any]) -> None:
    message = entry.get("message") or entry.get("delta") or {}
    choice.text += entry.get("text") or message.get("content") or ""
    choice.arguments += "".join(call["function"].get("arguments") or "" for call in message.get("tool_calls") or ())
    found = entry.get("logprobs")
    if not found:
        return
    if "content" in found:
        texts = [one["token"] for one in found["content"]]
        choice.logprobs += [one["logprob"] for one in found["content"]]
        choice.tops += [[top["logprob"] for top in one["top_logprobs"]] for one in found["content"]]
    else:
        texts = found["tokens"]
        choice.logprobs += found["token_logprobs"]
        choice.tops += [sorted(top.values(), reverse=True) for top in found["top_logprobs"] or ()]
    choice.tokens += [END if text == "</s>" else 1 + ord(text) for text in texts]


# The claims


def _grammar(run: Run) -> None:
    for choice in run.choices:
        if "tools" in run.names:
            assert not choice.text, "words beside a call that is required"
        elif "stop" in run.names:
            assert re.fullmatch("[a-z]{0,12}", choice.text)
        else:
            assert re.fullmatch(PATTERN, choice.text), choice.text


def _tools(run: Run) -> None:
    for choice in run.choices:
        assert not choice.text
        if "stop" not in run.names:
            assert re.fullmatch("[a-z]{4,8}", choice.word), choice.word


def _several(run: Run) -> None:
    assert len(run.choices) == NUM_CHOICES
    if not run.names & {"best_of", "beams"}:
        for index, choice in enumerate(run.choices):
            alone = run.again(n=1, seed=run.body["seed"] + index)
            assert alone.choices[0].word == choice.word, f"choice {index} is another one alone"


def _best_of(run: Run) -> None:
    if "beams" in run.names:
        return _beams(run)
    everything = run.again(("best_of",), **run.with_logprobs(0) | {"n": WIDTH})
    ranked = sorted(everything.choices, key=lambda choice: -choice.mean_logprob)
    assert [choice.text for choice in run.choices] == [choice.text for choice in ranked[: len(run.choices)]]
    return None


def _beams(run: Run) -> None:
    ranked = run.again(**run.with_logprobs(0) | {"n": WIDTH}).choices
    means = [choice.mean_logprob for choice in ranked]
    assert means == sorted(means, reverse=True), "not the best first"
    assert len({tuple(choice.tokens) for choice in ranked}) == WIDTH, "an answer twice"
    assert [choice.word for choice in run.choices] == [choice.word for choice in ranked[: len(run.choices)]]


def _logprobs(run: Run) -> None:
    for choice in run.choices:
        assert len(choice.logprobs) == len(choice.tokens) == len(choice.tops) > 0
        assert all(len(tops) == 2 and tops[0] >= tops[1] for tops in choice.tops)
        prompt = ids_of(run.prompt())
        scores = run.scores(prompt + choice.tokens)[len(prompt) :]
        assert choice.logprobs == pytest.approx(scores, abs=1e-3)


def _prompt_logprobs(run: Run) -> None:
    prompt, found = ids_of(run.prompt()), run.prompt_logprobs
    assert found is not None
    assert found[0] is None
    told = [entry[str(token)]["logprob"] for token, entry in zip(prompt, found, strict=True) if entry is not None]
    assert told == pytest.approx(run.scores(prompt)[1:], abs=1e-3)


def _penalties(run: Run) -> None:
    for choice in run.choices:
        word = choice.word
        assert len(set(word)) == len(word), f"{word!r} repeats itself"


def _seed(run: Run) -> None:
    words = [choice.word for choice in run.choices]
    assert [choice.word for choice in run.again().choices] == words
    others = [choice.word for choice in run.again(seed=run.body["seed"] + 1000).choices]
    assert (others == words) == ("beams" in run.names)


def _stop(run: Run) -> None:
    whole = run.again(("stop",))
    stop = whole.choices[0].word[2:4]
    cut = run.again(stop=[stop])
    for before, after in zip(whole.choices, cut.choices, strict=True):
        assert stop not in after.text + after.arguments
        if not run.names & {"best_of", "beams"}:
            assert before.text.partition(stop)[0] == after.text
            assert before.arguments.partition(stop)[0] == after.arguments


def _watermark(run: Run) -> None:
    for choice in run.choices:
        pairs = list(pairwise(ids_of(choice.word)))
        assert all(is_green(before, token) for before, token in pairs), choice.word


def _processors(run: Run) -> None:
    for choice in run.choices:
        assert all(token % 2 == 0 for token in ids_of(choice.word)), choice.word


def _streaming(run: Run) -> None:
    assert run.again(("stream", "stream_options")).choices == run.choices


def _chunks(run: Run) -> None:
    fresh = {"prompt": "fresh " + run.body["prompt"]} if not run.chat else _chat("fresh " + run.prompt())
    cold = run.again(**fresh)
    assert len(cold.prompt()) > BATCH_TOKENS
    assert cold.cached_tokens < BLOCK
    assert [choice.word for choice in cold.again().choices] == [choice.word for choice in cold.choices]


def _cache(run: Run) -> None:
    warm = run.again()
    assert (warm.cached_tokens >= BLOCK) == ("prompt_logprobs" not in run.names)
    assert [choice.word for choice in warm.choices] == [choice.word for choice in run.choices]


def _speculation(run: Run) -> None:
    assert run.plain is not None
    alone = ask(run.plain, run.names, run.body)
    assert [choice.word for choice in run.choices] == [choice.word for choice in alone.choices]


def _chat(content: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


@dataclass(frozen=True, slots=True)
class Feature:
    """Fields of a request, and what they claim."""

    fields: Mapping[str, Any]
    claim: Callable[[Run], None]
    processor: Mapping[str, Any] | None = None


FEATURES: Mapping[str, Feature] = {
    "grammar": Feature({"guided_regex": PATTERN}, _grammar),
    "tools": Feature(
        {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 90}, _tools
    ),
    "n": Feature({"n": NUM_CHOICES}, _several),
    "best_of": Feature({"best_of": WIDTH}, _best_of),
    "beams": Feature({"use_beam_search": True, "beam_width": WIDTH, "temperature": 0}, _beams),
    "logprobs": Feature({}, _logprobs),
    "prompt_logprobs": Feature({"prompt_logprobs": 1}, _prompt_logprobs),
    "penalties": Feature({"frequency_penalty": 2, "presence_penalty": 2}, _penalties),
    "seed": Feature({}, _seed),
    "stop": Feature({"stop": ["\x01\x02\x03"]}, _stop),
    "watermark": Feature({}, _watermark, {"name": "watermark", "delta": 30}),
    "processors": Feature({}, _processors, {"name": "even", "delta": 30}),
    "chunked prefill": Feature({}, _chunks),
    "prefix cache": Feature({}, _cache),
    "speculation": Feature({}, _speculation),
    "streaming": Feature({"stream": True, "stream_options": {"include_usage": True}}, _streaming),
}
"""In the order of the matrix."""


def body_of(names: frozenset[str], number: int) -> dict[str, Any]:
    """A request for several features at once; `number` makes its prompt its own."""
    prompt = f"{number} is the number of this prompt, and it is longer than what one step computes of it."
    body: dict[str, Any] = _chat(prompt) if "tools" in names else {"prompt": prompt}
    body |= {"max_tokens": 12, "temperature": 0.3, "seed": number}
    chosen = [feature for name, feature in FEATURES.items() if name in names]
    for feature in chosen:
        body |= feature.fields
    if "logprobs" in names:
        body |= {"logprobs": True, "top_logprobs": 2} if "tools" in names else {"logprobs": 2}
    processors = [feature.processor for feature in chosen if feature.processor is not None]
    return body | ({"logits_processors": processors} if processors else {})
