"""What crosses the border between the server process and the engine process, and nothing else.

All types are msgspec structs without behaviour beyond their own validation. The server sends `Submit`, `Cancel` and
`Drain`; the engine answers with `Progress` while it loads, one `Ready` or `StartupFailed`, then a `StepOutput` a step.
Every `Submit` is answered by deltas that end, for each of its sequences, with exactly one that has a `finish` reason.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal, NewType

import msgspec

from mainspring.core.errors import ErrorKind
from mainspring.core.metrics import Stats

RequestId = NewType("RequestId", int)
"""Chosen by the server, unique among live requests; public ids (`chatcmpl-...`) never reach the engine."""


class FinishReason(IntEnum):
    """Why a sequence stopped. The integer crosses the border; each protocol has its own words for it."""

    EOS = 1
    """The model's own end-of-sequence token."""
    STOP = 2
    """A stop string (found by the server) or one of `stop_token_ids`."""
    LENGTH = 3
    """`max_tokens` tokens were generated, or the model's context is full."""
    CANCELLED = 4
    """The client asked for it or went away."""
    ERROR = 5
    """`Delta.error` says why."""


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What an answer must be, in the notation of one of the engines of `core/grammar`."""

    engine: str
    source: str


class LogitsProcessing(msgspec.Struct, frozen=True, array_like=True):
    """That a processor is to change a sequence's logits, and with which numbers."""

    name: str
    values: tuple[float, ...] = ()
    """One for each parameter that it declares, in that order."""


class Parameter(msgspec.Struct, frozen=True, array_like=True):
    """A number that requests may give to a logits processor."""

    name: str
    kind: Literal["number", "integer"]
    minimum: float
    maximum: float
    """Both included; of an integer within 32 bits."""
    default: float

    def problem(self, value: float) -> str | None:
        """What is wrong with a value, as the end of a sentence; None when nothing is."""
        kind = int if self.kind == "integer" else float
        low, high = kind(self.minimum), kind(self.maximum)
        if self.kind == "integer" and value != value // 1:
            return f"is {value}, which is no integer"
        return None if low <= value <= high else f"is {value}; it must be >= {low} and <= {high}"


class ProcessorForm(msgspec.Struct, frozen=True, array_like=True):
    """A logits processor as requests see it."""

    name: str
    parameters: tuple[Parameter, ...] = ()


class Vocabulary(msgspec.Struct, frozen=True, tag="vocabulary", array_like=True):
    """What tokens stand for, which the engine must know before it can follow a grammar. Sent once."""

    tokens: tuple[bytes, ...]
    """By token id; empty for ids that stand for nothing."""
    special: tuple[int, ...]
    """Ids that are never part of a text."""
    ends: tuple[int, ...]
    """Ids that end a sequence, at least one."""


class SamplingParams(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """How to choose tokens. The defaults mean "off" for every field; `temperature == 0` is greedy.

    Order of application (TGI's, section 5 of its behaviour): repetition, frequency and presence penalties, logit_bias,
    min_tokens, logits processors, the grammar, temperature, top_k, top_p, typical_p, min_p, choose.
    """

    max_tokens: int | None = None
    """Tokens to generate; None asks for all that the context still holds, 0 only has the prompt computed."""
    min_tokens: int = 0
    """End-of-sequence and stop tokens are impossible before this many tokens."""
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Keskar et al. 2019 (CTRL): scores of tokens seen are divided (multiplied, if negative) by it."""
    frequency_penalty: float = 0.0
    """OpenAI: subtracted once per earlier occurrence in the output."""
    presence_penalty: float = 0.0
    """OpenAI: subtracted once from every token that occurs in the output."""
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    """Seed of this request's noise; None lets the engine draw one, which the first delta reports."""
    logprobs: int | None = None
    """None: none. 0: of the chosen tokens. k: of those and of the k likeliest. Always of the raw model distribution."""
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    prompt_logprobs: int | None = None
    """As `logprobs`, of the prompt's own tokens. Such a prompt is computed whole: the prefix cache spares nothing."""
    grammar: Grammar | None = None
    """What may be generated; it is applied to what penalties, biases and processors leave possible."""
    processors: tuple[LogitsProcessing, ...] = ()
    """Logits processors of this request, each at most once; they apply in the order of `Ready.processors`."""
    adjusted_logprobs: bool = False
    """`logprobs` are of what penalties, biases, processors and the grammar leave of the model's distribution, before
    temperature: what a search over answers ranks by. Impossible tokens are at minus infinity."""


class Submit(msgspec.Struct, frozen=True, tag="submit", array_like=True):
    """One request: a prompt, and `n` sequences to generate from it."""

    request_id: RequestId
    tokens: list[int]
    """The prompt's token ids, at least one."""
    params: SamplingParams
    n: int = 1
    """Sequences to generate. They share the prompt's blocks; sequence i uses seed + i."""
    priority: int = 0
    """Higher runs sooner; ageing keeps lower ones from starving."""
    timeout: float | None = None
    """Seconds from submission after which the request ends with `ErrorKind.DEADLINE`; None waits for ever."""
    cache_salt: str = ""
    """Prefix cache hits happen only between equal salts; the server derives it from the credential (tenant)."""
    said: int = 0
    """How many of `tokens`, the last ones, count as generated before: penalties, the grammar, `min_tokens` and
    `max_tokens` go on from there."""


class Cancel(msgspec.Struct, frozen=True, tag="cancel", array_like=True):
    """Stop a request, or one of its sequences. Unknown ids are ignored: the request may just have ended."""

    request_id: RequestId
    index: int | None = None


class Drain(msgspec.Struct, frozen=True, tag="drain", array_like=True):
    """Refuse new requests, finish the running ones, then exit 0."""


ToEngine = Submit | Cancel | Drain | Vocabulary


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities at one position, natural logarithm, raw model distribution."""

    logprob: float
    """Of the token that stands there: chosen, or given by the prompt."""
    top_ids: list[int]
    top_logprobs: list[float]
    """The likeliest tokens, best first; as many as the request asked for."""


class Delta(msgspec.Struct, array_like=True, omit_defaults=True):
    """What one sequence gained in one step."""

    request_id: RequestId
    index: int
    """Which of the request's `n` sequences."""
    tokens: list[int]
    finish: FinishReason | None = None
    logprobs: list[TokenLogprobs] | None = None
    """One entry a token of `tokens`, or None when not asked for."""
    error: ErrorKind | None = None
    message: str = ""
    """With `error`: a sentence that is safe to show to the client."""
    start: Start | None = None
    """On the sequence's first delta only."""
    prompt_logprobs: list[TokenLogprobs] | None = None
    """On the request's first delta only, if asked for: of the prompt's second token to its last. Nothing precedes the
    first, so it has none."""


class Start(msgspec.Struct, array_like=True):
    """Facts that are known when a sequence's first token appears."""

    cached_tokens: int
    """Prompt tokens whose keys and values came from the prefix cache."""
    seed: int
    queue_seconds: float
    """From submission to the first scheduled step."""


class StepOutput(msgspec.Struct, tag="step", array_like=True):
    """One message an engine step; also sent while idle, as the heartbeat."""

    step: int
    deltas: list[Delta]
    stats: Stats
    deadline: float
    """The next message comes within this many seconds, or the engine hangs."""


class Progress(msgspec.Struct, frozen=True, tag="progress", array_like=True):
    """Where start-up is: `phase` in words, and `done` of `total` units (bytes for weights, programs for warm-up)."""

    phase: str
    done: int
    total: int


class Ready(msgspec.Struct, frozen=True, tag="ready", array_like=True):
    """The engine serves. What the server needs to validate requests is stated here once."""

    max_length: int
    """Tokens a sequence may hold, prompt and output."""
    vocab_size: int
    block_size: int
    num_blocks: int
    max_sequences: int
    backend: str
    device: str
    dtype: str
    notes: tuple[str, ...] = ()
    """Fallbacks and choices worth telling the operator, one sentence each."""
    num_shard: int = 1
    """Devices that hold a part of the model each."""
    eos_token_ids: tuple[int, ...] = ()
    follows_grammars: bool = False
    """Whether `SamplingParams.grammar` is understood."""
    processors: tuple[ProcessorForm, ...] = ()
    """What `SamplingParams.processors` may name, in the order in which they apply."""
    speculate: int = 0
    """Tokens that are guessed at once for a sequence; 0 where nothing is."""


class StartupFailed(msgspec.Struct, frozen=True, tag="failed", array_like=True):
    """The engine cannot start; it exits after this."""

    reasons: tuple[str, ...]


FromEngine = StepOutput | Progress | Ready | StartupFailed
