"""Wire types of TGI's native routes. Requests are pydantic's, answers msgspec's.

Bounds that have a text of their own in TGI are checked in `parse.py`, in TGI's order; here are types and ranges.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field

from mainspring.server.http.body import Finite, Signed32, Unsigned32, Unsigned64, WireModel

FinishWord = Literal["length", "eos_token", "stop_sequence"]


class GenerateParameters(WireModel):
    """How to generate. None means that the client did not say."""

    best_of: Unsigned32 | None = None
    temperature: Finite | None = None
    repetition_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    top_k: Signed32 | None = None
    top_p: Finite | None = None
    typical_p: Finite | None = None
    do_sample: bool = False
    max_new_tokens: Unsigned32 | None = None
    return_full_text: bool | None = None
    stop: Annotated[list[str], Field(fail_fast=True)] | None = None
    truncate: Unsigned32 | None = None
    watermark: Annotated[bool | None, Field(description="Marks the text so that a detector finds it")] = None
    details: bool | None = None
    decoder_input_details: bool | None = None
    seed: Unsigned64 | None = None
    top_n_tokens: Unsigned32 | None = None
    grammar: Annotated[Any, Field(description="`{type: json | json_schema | regex, value: ...}`")] = None
    adapter_id: Annotated[str | None, Field(description="Not supported yet: refused")] = None


class GenerateRequest(WireModel):
    """Body of `/generate` and `/generate_stream`."""

    inputs: str
    parameters: GenerateParameters | None = None


class CompatGenerateRequest(GenerateRequest):
    """Body of `POST /`."""

    stream: bool = False


class Token(msgspec.Struct, frozen=True):
    """A generated token."""

    id: int
    text: str
    logprob: float
    special: bool


class PrefillToken(msgspec.Struct, frozen=True):
    """A token of the prompt."""

    id: int
    text: str
    logprob: float | None
    """null for the first, which nothing precedes."""


class BestOfSequence(msgspec.Struct, frozen=True, kw_only=True):
    """One of the sequences that `best_of` ranked lower."""

    generated_text: str
    finish_reason: FinishWord
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | UnsetType = UNSET


class Details(msgspec.Struct, frozen=True, kw_only=True):
    """What `details: true` adds; `decoder_input_details: true` fills `prefill` too."""

    finish_reason: FinishWord
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | UnsetType = UNSET
    best_of_sequences: list[BestOfSequence] | UnsetType = UNSET


class GenerateResponse(msgspec.Struct, frozen=True):
    """Answer of `/generate`."""

    generated_text: str
    details: Details | UnsetType = UNSET


class StreamDetails(msgspec.Struct, frozen=True):
    """On the last event of a stream."""

    finish_reason: FinishWord
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamResponse(msgspec.Struct, frozen=True, kw_only=True):
    """One event of `/generate_stream`: one token."""

    index: int
    """Counts from 1."""
    token: Token
    top_tokens: list[Token] | UnsetType = UNSET
    generated_text: str | None
    details: StreamDetails | None


class ErrorResponse(msgspec.Struct, frozen=True):
    """The body of every error, and the last event of a stream that failed."""

    error: str
    error_type: str


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `/info`."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str
    sha: str | None
    docker_label: str | None
    model_dtype: str
    model_device_type: str
    num_shard: int
    speculate: int
    """Tokens guessed at once, 0 for none."""
