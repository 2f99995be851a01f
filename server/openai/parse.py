"""OpenAI's request bodies to `Generation`s: every check before the first byte of an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mainspring.core.grammar.messages import GrammarSpec
from mainspring.core.request import SamplingParams
from mainspring.server.beams.form import BeamFields, beams_of
from mainspring.server.beams.search import Beams
from mainspring.server.errors import FieldError, TemplateError, UnknownModelError, UnsupportedError, invalid
from mainspring.server.grammar.requests import of_response_format, of_vllm
from mainspring.server.http.body import parse_wire
from mainspring.server.logits_processors import of_request
from mainspring.server.model import ServedModel
from mainspring.server.openai.answers import AnswerForm, Reading, reading_of
from mainspring.server.openai.tools import call_for_template, offer_of, tools_of, with_tool_names, with_tools_in_text
from mainspring.server.openai.types import ChatRequest, CompletionRequest, Message, SamplingFields
from mainspring.server.text.generation import Generation
from mainspring.server.text.template import ChatTemplate
from mainspring.server.text.tokenizer import TooManyTokens

_ANY_MODEL = (None, "", "tgi", "dummy")
"""What clients send for whatever is served: TGI's documentation says `tgi`, and huggingface_hub sends `dummy`."""
_ANY_MODEL_PREFIXES = ("http://", "https://")
"""@huggingface/inference names the server by its own address where it is given no model."""
_DEFAULT_COMPLETION_TOKENS = 16
_SHARED_UNSUPPORTED = ("adapter_id",)
_GUIDED_FIELDS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs")
_CHAT_UNSUPPORTED = ("functions", "function_call", "audio", "prediction", "web_search_options", "chat_template")


@dataclass(frozen=True, slots=True)
class Call:
    """A checked request, and what its answer must look like."""

    generations: list[Generation]
    """One a prompt, all with the same `n`."""
    prompt_characters: int
    stream: bool
    include_usage: bool
    num_top_logprobs: int | None
    """None: no log-probabilities in the answer."""
    echoes: tuple[str, ...] = ()
    """Per prompt, text to put before the answer; empty when not asked for."""
    num_choices: int | None = None
    """Of each prompt's sequences, how many are answered with: those of the highest mean log-probability. None: all."""
    num_prompt_logprobs: int | None = None
    """None: none in vLLM's form; those of an echo are in OpenAI's."""
    form: AnswerForm = field(default_factory=AnswerForm)
    """Of chats: how to tell thoughts, words and calls apart."""


def parse_chat(body: bytes, model: ServedModel) -> Call:
    """Body of `/v1/chat/completions`. Raises RequestError."""
    return chat_call(parse_wire(ChatRequest, body), model)


def chat_call(request: ChatRequest, model: ServedModel) -> Call:
    """A chat request, checked. Raises RequestError."""
    if request.top_logprobs is not None and not request.logprobs:
        raise invalid("`top_logprobs` needs `logprobs: true`", "top_logprobs")
    offer = offer_of(request)
    prompt = chat_prompt(request, model)
    reading = reading_of(model, offer, prompt)
    if offer.required and not model.constrains:
        raise UnsupportedError("tool_choice")
    tokens = _encode(prompt, model, add_special_tokens=False)
    max_tokens = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    num_top_logprobs = (request.top_logprobs or 0) if request.logprobs else None
    generation = _generation(request, tokens, max_tokens, num_top_logprobs, model)
    return Call(
        generations=[replace(generation, markers=reading.markers, grammar=_grammar_of(reading) or generation.grammar)],
        prompt_characters=len(prompt),
        stream=bool(request.stream),
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
        num_top_logprobs=num_top_logprobs,
        num_prompt_logprobs=request.prompt_logprobs,
        form=reading.form,
    )


def chat_prompt(request: ChatRequest, model: ServedModel) -> str:
    """The messages as the model's template writes them. Raises RequestError for what no prompt can be made of."""
    _check_shared(request, model)
    _refuse(request, _CHAT_UNSUPPORTED)
    if request.modalities not in (None, ["text"]):
        raise UnsupportedError("modalities")
    if model.template is None:
        raise TemplateError("this model has no chat template; use /v1/completions")
    messages = with_tool_names([_template_message(i, m) for i, m in enumerate(request.messages)])
    tools = tools_of(request) if request.tool_choice != "none" else ()
    if tools and not model.template.takes_tools:
        messages, tools = with_tools_in_text(messages, tools, request.tool_prompt), ()
    options = dict(request.chat_template_kwargs or {})
    if request.reasoning_effort is not None:
        options["reasoning_effort"] = request.reasoning_effort
    return _render(model.template, messages, [tool.for_template() for tool in tools] or None, options)


def _render(
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    options: dict[str, Any],
) -> str:
    """Templates take the arguments of earlier calls for objects, a few for the text that the client sent."""
    if not any(message.get("tool_calls") for message in messages):
        return template.render(messages, tools, options)
    try:
        return template.render([_with_objects(message) for message in messages], tools, options)
    except TemplateError:
        return template.render(messages, tools, options)


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [call_for_template(call) for call in calls]} if calls else message


def parse_completion(body: bytes, model: ServedModel) -> Call:
    """Body of `/v1/completions`. Raises RequestError."""
    request = parse_wire(CompletionRequest, body)
    _check_shared(request, model)
    _refuse(request, ("suffix",))
    num_choices = _num_choices(request)
    prompts = [_prompt_tokens(prompt, model) for prompt in _prompts(request, model)]
    texts = [text for text, _ in prompts]
    max_tokens = _DEFAULT_COMPLETION_TOKENS if request.max_tokens is None else request.max_tokens
    if max_tokens == 0 and request.use_beam_search:
        raise invalid("`max_tokens` is 0; beam search needs at least 1", "max_tokens")
    if max_tokens == 0 and not request.echo and request.prompt_logprobs is None:
        raise invalid("`max_tokens` is 0, which needs `echo` or `prompt_logprobs`", "max_tokens")
    return Call(
        generations=[_completion_generation(request, tokens, max_tokens, model) for _, tokens in prompts],
        prompt_characters=sum(len(text) for text in texts),
        stream=bool(request.stream),
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
        num_top_logprobs=request.logprobs,
        echoes=tuple(texts) if request.echo else (),
        num_choices=num_choices,
        num_prompt_logprobs=request.prompt_logprobs,
    )


def _num_choices(request: CompletionRequest) -> int | None:
    n, best_of = request.n or 1, request.best_of
    if best_of is None or best_of == n or request.use_beam_search:
        return None
    if best_of < n:
        raise invalid(f"`best_of` is {best_of}, less than the {n} choices of `n`", "best_of")
    if request.stream:
        raise invalid("`best_of` cannot be streamed: which is best is known at the end", "best_of")
    return n


def _completion_generation(
    request: CompletionRequest, tokens: list[int], max_tokens: int, model: ServedModel
) -> Generation:
    if request.best_of is None or request.best_of == (request.n or 1) or request.use_beam_search:
        return _generation(request, tokens, max_tokens, request.logprobs, model)
    # Ranking needs log-probabilities, asked for or not.
    generation = _generation(request, tokens, max_tokens, request.logprobs or 0, model)
    return replace(generation, n=request.best_of)


def _grammar_of(reading: Reading) -> GrammarSpec | None:
    """What calls must be."""
    return None if reading.structure is None else GrammarSpec("structural_tag", json.dumps(reading.structure))


def _asked_grammar(request: SamplingFields, model: ServedModel) -> GrammarSpec | None:
    """What the request says of its answers, in any of the ways that clients know."""
    formatted = of_response_format(request.response_format)
    guided = of_vllm({name: getattr(request, name) for name in _GUIDED_FIELDS})
    if formatted is not None and guided is not None:
        raise invalid("an answer follows one grammar; leave out `response_format` or the other one", "response_format")
    found = formatted or guided
    if found is not None and not model.constrains:
        raise UnsupportedError("response_format" if formatted is not None else "guided_json")
    if found is not None and request.min_tokens:
        raise invalid("`min_tokens` cannot be promised of an answer that ends where its grammar does", "min_tokens")
    return found


def _check_shared(request: SamplingFields, model: ServedModel) -> None:
    name = request.model
    if name not in (*_ANY_MODEL, model.id) and not (name or "").startswith(_ANY_MODEL_PREFIXES):
        raise UnknownModelError(name or "", model.id)
    _refuse(request, _SHARED_UNSUPPORTED)
    if request.stream_options is not None and not request.stream:
        raise invalid("`stream_options` needs `stream: true`", "stream_options")
    if request.prompt_logprobs is not None and request.stream:
        raise invalid("`prompt_logprobs` is not available in streams", "prompt_logprobs")


def _refuse(request: SamplingFields, fields: Sequence[str]) -> None:
    for name in fields:
        if getattr(request, name):  # null, false and empty ask for nothing
            raise UnsupportedError(name)


def _template_message(number: int, message: Message) -> dict[str, Any]:
    content = message.content
    if isinstance(content, list):
        for position, part in enumerate(content):
            if part.type != "text":
                raise UnsupportedError(f"messages.{number}.content.{position}.{part.type[:64]}")
            if part.text is None:
                raise invalid(
                    f"`messages.{number}.content.{position}.text` is missing",
                    f"messages.{number}.content.{position}.text",
                )
        content = "".join(part.text or "" for part in content)
    if content is None and not message.tool_calls:
        raise invalid(f"`messages.{number}.content` is missing", f"messages.{number}.content")
    optional = {
        "name": message.name,
        "tool_calls": message.tool_calls,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content,
    }
    return {
        "role": message.role,
        "content": content or "",
        **{key: value for key, value in optional.items() if value is not None},
    }


def _prompts(request: CompletionRequest, model: ServedModel) -> list[str | list[int]]:
    """The prompts one by one, whichever of the four forms they came in."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise invalid("`prompt` is empty", "prompt")
    if isinstance(prompt[0], int):
        return [prompt]
    prompts = [entry for entry in prompt if not isinstance(entry, int)]
    limit = model.limits.max_client_batch_size
    if len(prompts) > limit:
        raise invalid(f"`prompt` has {len(prompts)} prompts; at most {limit} are allowed in one request", "prompt")
    return list(prompts)


def _prompt_tokens(prompt: str | list[int], model: ServedModel) -> tuple[str, list[int]]:
    if isinstance(prompt, str):
        return prompt, _encode(prompt, model)
    _check_length(len(prompt), model)  # first: the rest takes its time with a long list
    unknown = next((token for token in prompt if token >= model.vocab_size), None)
    if unknown is not None:
        raise invalid(f"`prompt` holds token {unknown}; the vocabulary has {model.vocab_size}", "prompt")
    return model.tokenizer.decode(prompt), prompt


def _encode(prompt: str, model: ServedModel, *, add_special_tokens: bool = True) -> list[int]:
    try:
        return model.tokenizer.encode(prompt, add_special_tokens, most=model.limits.max_input_tokens)
    except TooManyTokens as error:
        raise _too_long(error.count, model) from error


def _generation(
    request: SamplingFields, tokens: list[int], max_tokens: int | None, logprobs: int | None, model: ServedModel
) -> Generation:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    return Generation(
        tokens=tokens,
        params=_sampling(request, _fit(len(tokens), max_tokens, model), logprobs, model),
        n=request.n or 1,
        stops=tuple(stops),
        priority=request.priority or 0,
        beams=_beams(request),
        grammar=_asked_grammar(request, model),
    )


def _beams(request: SamplingFields) -> Beams | None:
    names = ("top_k", "top_p", "min_p")
    off = (None, -1, 0, 1)
    return beams_of(
        BeamFields(
            use_beam_search=request.use_beam_search,
            beam_width=request.beam_width,
            best_of=request.best_of if isinstance(request, CompletionRequest) else None,
            n=request.n,
            length_penalty=request.length_penalty,
            early_stopping=request.early_stopping,
            temperature=request.temperature,
            drawing=tuple(name for name in names if getattr(request, name) not in off),
            stream=bool(request.stream),
        )
    )


def _fit(num_tokens: int, max_tokens: int | None, model: ServedModel) -> int:
    """Tokens to generate. Raises when prompt and answer do not fit into the context."""
    limits = model.limits
    if num_tokens == 0:
        raise invalid("the prompt is empty", "prompt")
    _check_length(num_tokens, model)
    room = limits.max_total_tokens - num_tokens
    if max_tokens is not None and max_tokens > room:
        raise invalid(
            f"the prompt has {num_tokens} tokens and `max_tokens` is {max_tokens}; the model's context is "
            f"{limits.max_total_tokens} tokens, so ask for at most {room}",
            "max_tokens",
            "context_length_exceeded",
        )
    return room if max_tokens is None else max_tokens


def _check_length(num_tokens: int, model: ServedModel) -> None:
    if num_tokens > model.limits.max_input_tokens:
        raise _too_long(num_tokens, model)


def _too_long(num_tokens: int, model: ServedModel) -> FieldError:
    message = f"the prompt has {num_tokens} tokens; at most {model.limits.max_input_tokens} are allowed"
    return invalid(message, None, "context_length_exceeded")


def _sampling(request: SamplingFields, max_tokens: int, logprobs: int | None, model: ServedModel) -> SamplingParams:
    min_tokens = request.min_tokens or 0
    if min_tokens > max_tokens:
        raise invalid(f"`min_tokens` is {min_tokens}, more than the {max_tokens} that may be generated", "min_tokens")
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_k=max(request.top_k or 0, 0),
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        repetition_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        logit_bias=_logit_bias(request, model),
        # Any number will do, and that of the last of n sequences must still fit 64 bits.
        seed=None if request.seed is None else request.seed % 2**63,
        logprobs=logprobs,
        prompt_logprobs=_prompt_logprobs(request, logprobs),
        stop_token_ids=_stop_token_ids(request, model),
        ignore_eos=bool(request.ignore_eos),
        processors=of_request(request.logits_processors, request.watermark, model.processors),
    )


def _prompt_logprobs(request: SamplingFields, logprobs: int | None) -> int | None:
    """The most that the echo and vLLM's field ask for."""
    echoed = logprobs if isinstance(request, CompletionRequest) and request.echo else None
    return max((asked for asked in (echoed, request.prompt_logprobs) if asked is not None), default=None)


def _stop_token_ids(request: SamplingFields, model: ServedModel) -> tuple[int, ...]:
    for token_id in request.stop_token_ids or ():
        if token_id >= model.vocab_size:
            raise invalid(
                f"`stop_token_ids` names token {token_id}; the vocabulary has {model.vocab_size}", "stop_token_ids"
            )
    return tuple(request.stop_token_ids or ())


def _logit_bias(request: SamplingFields, model: ServedModel) -> dict[int, float]:
    bias = {}
    for key, value in (request.logit_bias or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < model.vocab_size):
            raise invalid(
                f"`logit_bias` names token {key[:20]!r}; keys are token ids below {model.vocab_size}", "logit_bias"
            )
        bias[int(key)] = value
    return bias
