"""Wire types of OpenAI's routes. Requests are pydantic's, answers msgspec's.

Fields that are known and not supported are listed, so that asking for one is an error and never silence.
Reference: https://platform.openai.com/docs/api-reference; the extra sampling fields are those of vLLM.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import BeforeValidator, Discriminator, Field, Tag, WrapValidator
from pydantic_core import PydanticCustomError

from mainspring.server.http.body import Finite, Signed32, Signed64, Unsigned32, WireModel
from mainspring.server.http.slices import check_slices
from mainspring.server.model import MAX_STOP_CHARACTERS
from mainspring.server.openai.tool_types import MAX_TOOLS, ToolChoice, ToolSpec

FinishWord = Literal["stop", "length", "tool_calls"]
MAX_STOPS = 16
MAX_N = 8
MAX_LOGPROBS = 20
MAX_ITEMS = 4096
"""Messages, parts of one, prompts, biased tokens: more than anybody means, and few enough to be checked in no time."""

Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Bias = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]

Ignored = Annotated[Any, Field(description="Taken, and without effect")]
Absent = Annotated[Any, Field(description="Not supported yet: refused")]

# A body of two megabytes can be wrong in half a million places, and telling them all holds the interpreter for seconds.
# So a list ends at its first mistake, and of a prompt's four forms only the one that its beginning has is tried.
_BRIEF = Field(fail_fast=True, max_length=MAX_ITEMS)


def _form(prompt: object) -> str:
    """Which of a prompt's forms is meant, by its first entry."""
    if not isinstance(prompt, list):
        return "str"
    first = prompt[0] if prompt else 0
    return "list[str]" if isinstance(first, str) else "list[list[int]]" if isinstance(first, list) else "list[int]"


def _not_too_many(entries: object) -> object:
    if isinstance(entries, dict) and len(entries) > MAX_ITEMS:
        raise PydanticCustomError("too_long", "At most {most} entries are allowed", {"most": MAX_ITEMS})
    return entries


TokenIds = Annotated[list[TokenId], Field(fail_fast=True), WrapValidator(check_slices)]
Prompt = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[TokenIds, Tag("list[int]")]
    | Annotated[list[str], _BRIEF, Tag("list[str]")]
    | Annotated[list[TokenIds], _BRIEF, Tag("list[list[int]]")],
    Discriminator(_form),
]


class StreamOptions(WireModel):
    """What a stream carries beside text."""

    include_usage: bool = False


class SamplingFields(WireModel):
    """What chat completions and completions share. None means that the client did not say."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    seed: Signed64 | None = None
    stop: Stop | Annotated[list[Stop], Field(fail_fast=True, max_length=MAX_STOPS)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias], BeforeValidator(_not_too_many)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # vLLM's extras
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Unsigned32 | None = None
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True, max_length=128)] | None = None
    priority: Signed32 | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    use_beam_search: bool | None = None
    beam_width: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] | None = None
    early_stopping: bool | Literal["never"] | None = None
    # what the answer must be: OpenAI's, with TGI's `value` understood, and vLLM's
    response_format: Annotated[Any, Field(description="text, json_object, json_schema, regex, structural_tag")] = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(fail_fast=True)] | None = None
    guided_grammar: str | None = None
    structured_outputs: Annotated[Any, Field(description="json, regex, choice, grammar or structural_tag")] = None
    # known, and without effect here: they are about the client's account, or name what is done anyway
    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    # what plugins do to scores, and the first of them by TGI's name
    logits_processors: Annotated[Any, Field(description="`[{name: ..., parameter: number, ...}]`")] = None
    watermark: Annotated[bool | None, Field(description="Marks the text so that a detector finds it")] = None
    # known, and not there
    adapter_id: Absent = None


class TextPart(WireModel):
    """A piece of a message. Parts of another type are refused by name in `parse.py`."""

    type: str
    text: str | None = None


class Message(WireModel):
    """One message of a chat. Which roles there are is up to the model's template."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | Annotated[list[TextPart], _BRIEF] | None = None
    name: str | None = None
    tool_calls: Annotated[list[dict[str, Any]], _BRIEF] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    """The thoughts of an earlier answer, for templates that show them."""


class ChatRequest(SamplingFields):
    """Body of `/v1/chat/completions`."""

    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[ToolSpec], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    tool_prompt: str | None = None
    """TGI's: what goes before the tools, where the model's template has no place for them."""
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None
    """For templates that have the variable."""
    chat_template_kwargs: Annotated[dict[str, Any], BeforeValidator(_not_too_many)] | None = None
    """Further variables of the template: `enable_thinking` for one."""
    # known, and not there
    functions: Absent = None
    function_call: Absent = None
    audio: Absent = None
    modalities: Annotated[Any, Field(description="Only `text`")] = None
    prediction: Absent = None
    web_search_options: Absent = None
    chat_template: Absent = None


class CompletionRequest(SamplingFields):
    """Body of `/v1/completions`."""

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    """0 only with `echo` or `prompt_logprobs`: the prompt is scored and nothing generated."""
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    # known, and not there
    suffix: Absent = None


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Tokens of the prompt that were found in the prefix cache."""

    cached_tokens: int


class Usage(msgspec.Struct, frozen=True):
    """Tokens of the whole request: each prompt once, every generated sequence."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(msgspec.Struct, frozen=True):
    """One of the likeliest tokens at a place. `bytes` are whole where its text is half a character."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token of the answer, natural logarithms; the likeliest come best first."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """One entry for each token that the choice, or this chunk of it, holds."""

    content: list[TokenLogprob]


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Parallel lists, one entry a token. An echoed prompt's first token has null for its log-probabilities."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class PromptLogprob(msgspec.Struct, frozen=True):
    """vLLM's extra: one token that a prompt has, or might have had, at a position."""

    logprob: float
    rank: int | None
    """1 for the likeliest; null where the token is not among those asked for."""
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""By token id, one entry a token of the prompt; null for the first."""


class FunctionCall(msgspec.Struct, frozen=True):
    """What a model wants called. `arguments` is JSON as text, as the API has it."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, frozen=True):
    """A whole call; a later message of role `tool` answers it by `id`."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class FunctionDelta(msgspec.Struct, frozen=True):
    """The name comes once, the arguments bit by bit."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct, frozen=True):
    """More of the call with this index; `id` and `type` with its first."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class AssistantMessage(msgspec.Struct, frozen=True):
    """What a choice says, thoughts and calls taken out of its text."""

    content: str | None
    """Null where the answer is calls and nothing else."""
    role: Literal["assistant"] = "assistant"
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One of the `n` answers."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishWord


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class ChatDelta(msgspec.Struct, frozen=True):
    """What a chunk adds to the message; `role` comes with the first alone."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType | None = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """More of one of the `n` answers; its last chunk says why it ended."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishWord | None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class CompletionChoice(msgspec.Struct, frozen=True):
    """One answer, or more of it in a stream. `index` counts prompts times answers."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishWord | None
    prompt_logprobs: PromptLogprobs | UnsetType = UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `/v1/completions`, and one event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that requests may name. `max_model_len` is in tokens, prompt and answer together."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    max_model_len: int


class ModelList(msgspec.Struct, frozen=True):
    """Answer of `/v1/models`."""

    data: list[Model]
    object: Literal["list"] = "list"


class ErrorBody(msgspec.Struct, frozen=True):
    """What went wrong, in words; `param` names the field that it is about."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(msgspec.Struct, frozen=True):
    """The body of every error, and the last event of a stream that failed."""

    error: ErrorBody
