"""TGI's request bodies to `Generation`s. Checks, their order and their texts are TGI's (router/src/validation.rs)."""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.core.request import LogitsProcessing, SamplingParams
from mainspring.server.errors import UnsupportedError, invalid
from mainspring.server.grammar.requests import of_tgi
from mainspring.server.http.body import parse_wire
from mainspring.server.logits_processors import of_request
from mainspring.server.model import MAX_STOP_CHARACTERS, Limits, ServedModel
from mainspring.server.text.generation import Generation
from mainspring.server.text.tokenizer import TooManyTokens
from mainspring.server.tgi.types import CompatGenerateRequest, GenerateParameters, GenerateRequest


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """A checked request, and what its answer must look like."""

    generation: Generation
    inputs: str
    return_full_text: bool
    details: bool
    top_n_tokens: int
    stream: bool


def parse_generate(body: bytes, model: ServedModel) -> GenerateCall:
    """Body of `/generate`. Raises RequestError."""
    return _call(parse_wire(GenerateRequest, body), model, stream=False, full_text=False)


def parse_generate_stream(body: bytes, model: ServedModel) -> GenerateCall:
    """Body of `/generate_stream`. Raises RequestError."""
    return _call(parse_wire(GenerateRequest, body), model, stream=True, full_text=False)


def parse_compat(body: bytes, model: ServedModel) -> GenerateCall:
    """Body of `POST /`, where the prompt is part of the answer unless it is told not to be. Raises RequestError."""
    request = parse_wire(CompatGenerateRequest, body)
    return _call(request, model, stream=request.stream, full_text=True)


def vertex_call(request: GenerateRequest, model: ServedModel) -> GenerateCall:
    """One instance of a body of `/vertex`, which has been parsed with the others. Raises RequestError."""
    return _call(request, model, stream=False, full_text=False)


def _call(request: GenerateRequest, model: ServedModel, *, stream: bool, full_text: bool) -> GenerateCall:
    # Without any `parameters` TGI samples; with an empty object it does not.
    parameters = request.parameters or GenerateParameters(do_sample=True)
    _check_supported(parameters)
    processors = of_request(None, parameters.watermark, model.processors)
    grammar = of_tgi(parameters.grammar)
    if grammar is not None and not model.constrains:
        raise UnsupportedError("grammar")
    _check(parameters, model.limits, stream)
    tokens = _encode(request.inputs, parameters, model)
    max_tokens = _max_tokens(len(tokens), parameters.max_new_tokens, model.limits)
    generation = Generation(
        tokens=tokens,
        params=_sampling(parameters, max_tokens, processors, with_logprobs=stream),
        n=max(parameters.best_of or 1, 1),
        stops=tuple(parameters.stop or ()),
        keep_stop=True,
        grammar=grammar,
    )
    return GenerateCall(
        generation=generation,
        inputs=request.inputs,
        return_full_text=full_text if parameters.return_full_text is None else parameters.return_full_text,
        details=bool(parameters.details or parameters.decoder_input_details),
        top_n_tokens=parameters.top_n_tokens or 0,
        stream=stream,
    )


def _check_supported(parameters: GenerateParameters) -> None:
    if parameters.adapter_id:
        raise UnsupportedError("adapter_id")


def _samples(parameters: GenerateParameters) -> bool:
    shaping = (parameters.temperature, parameters.top_k, parameters.top_p, parameters.typical_p)
    return parameters.do_sample or any(value is not None for value in shaping)


def _check(parameters: GenerateParameters, limits: Limits, stream: bool) -> None:
    best_of = parameters.best_of or 1
    _check_best_of(best_of, parameters, limits, stream)
    if stream and parameters.decoder_input_details:
        message = "`decoder_input_details` == true is not supported when streaming tokens"
        raise invalid(message, "decoder_input_details")
    if parameters.temperature is not None and parameters.temperature <= 0:
        raise invalid("`temperature` must be strictly positive", "temperature")
    if parameters.repetition_penalty is not None and parameters.repetition_penalty <= 0:
        raise invalid("`repetition_penalty` must be strictly positive", "repetition_penalty")
    if parameters.frequency_penalty is not None and not -2 <= parameters.frequency_penalty <= 2:
        raise invalid("`frequency_penalty` must be >= -2.0 and <= 2.0", "frequency_penalty")
    if parameters.top_p is not None and not 0 < parameters.top_p <= 1:  # 1.0 is off; TGI refused it
        raise invalid("`top_p` must be > 0.0 and <= 1.0", "top_p")
    if parameters.typical_p is not None and not 0 < parameters.typical_p <= 1:
        raise invalid("`typical_p` must be > 0.0 and <= 1.0", "typical_p")
    if parameters.top_k is not None and parameters.top_k <= 0:
        raise invalid("`top_k` must be strictly positive", "top_k")
    if parameters.max_new_tokens == 0:
        raise invalid("`max_new_tokens` must be strictly positive", "max_new_tokens")
    _check_stops(parameters.stop or [], limits)
    if best_of > 1 and parameters.seed is not None:
        raise invalid("`seed` must not be set when `best_of` > 1", "seed")
    if (parameters.top_n_tokens or 0) > limits.max_top_n_tokens:
        raise invalid(
            f"`top_n_tokens` must be >= 0 and <= {limits.max_top_n_tokens}. Given: {parameters.top_n_tokens}",
            "top_n_tokens",
        )


def _check_best_of(best_of: int, parameters: GenerateParameters, limits: Limits, stream: bool) -> None:
    if best_of == 1:
        return
    if limits.max_best_of == 1:
        raise invalid("`best_of` != 1 is not allowed for this endpoint", "best_of")
    if best_of > limits.max_best_of:
        raise invalid(f"`best_of` must be > 0 and <= {limits.max_best_of}. Given: {best_of}", "best_of")
    if not _samples(parameters):
        raise invalid("you must use sampling when `best_of` is > 1", "best_of")
    if stream:
        raise invalid("`best_of` != 1 is not supported when streaming tokens", "best_of")


def _check_stops(stops: list[str], limits: Limits) -> None:
    if len(stops) > limits.max_stop_sequences:
        raise invalid(f"`stop` supports up to {limits.max_stop_sequences} stop sequences. Given: {len(stops)}", "stop")
    if "" in stops:
        raise invalid("`stop` must not hold an empty string", "stop")
    longest = max(map(len, stops), default=0)
    if longest > MAX_STOP_CHARACTERS:
        raise invalid(f"`stop` sequences have at most {MAX_STOP_CHARACTERS} characters. Given: {longest}", "stop")


def check_inputs(inputs: str, truncate: int | None, limits: Limits) -> None:
    """What can be said of a prompt before it is tokenised. Raises RequestError."""
    limit = limits.max_input_tokens
    if not inputs:
        raise invalid("`inputs` cannot be empty", "inputs")
    if truncate is not None and not 0 < truncate <= limit:
        raise invalid(f"`truncate` must be strictly positive and less than {limit}. Given: {truncate}", "truncate")


def _encode(inputs: str, parameters: GenerateParameters, model: ServedModel) -> list[int]:
    truncate = parameters.truncate
    check_inputs(inputs, truncate, model.limits)
    try:
        tokens = model.tokenizer.encode(inputs, most=model.limits.max_input_tokens if truncate is None else None)
    except TooManyTokens as error:
        _max_tokens(error.count, parameters.max_new_tokens, model.limits)
        raise
    if not tokens:
        raise invalid("`inputs` cannot be empty: the tokenizer makes no token of it", "inputs")
    return tokens if truncate is None else tokens[-truncate:]


def _max_tokens(input_length: int, max_new_tokens: int | None, limits: Limits) -> int:
    if max_new_tokens is not None and input_length + max_new_tokens > limits.max_total_tokens:
        raise invalid(
            f"`inputs` tokens + `max_new_tokens` must be <= {limits.max_total_tokens}. "
            f"Given: {input_length} `inputs` tokens and {max_new_tokens} `max_new_tokens`",
            "max_new_tokens",
        )
    if input_length > limits.max_input_tokens:
        raise invalid(f"`inputs` must have less than {limits.max_input_tokens} tokens. Given: {input_length}", "inputs")
    return limits.max_total_tokens - input_length if max_new_tokens is None else max_new_tokens


def _sampling(
    parameters: GenerateParameters, max_tokens: int, processors: tuple[LogitsProcessing, ...], *, with_logprobs: bool
) -> SamplingParams:
    samples = _samples(parameters)
    with_details = bool(parameters.details or parameters.decoder_input_details)
    with_logprobs = with_logprobs or with_details or (parameters.best_of or 1) > 1
    default_temperature = 1.0 if samples else 0.0
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=default_temperature if parameters.temperature is None else parameters.temperature,
        top_k=parameters.top_k or 0,
        top_p=1.0 if parameters.top_p is None else parameters.top_p,
        typical_p=1.0 if parameters.typical_p is None else parameters.typical_p,
        repetition_penalty=1.0 if parameters.repetition_penalty is None else parameters.repetition_penalty,
        frequency_penalty=parameters.frequency_penalty or 0.0,
        seed=parameters.seed,
        logprobs=(parameters.top_n_tokens or 0) if with_logprobs else None,
        prompt_logprobs=0 if parameters.decoder_input_details else None,
        processors=processors,
    )
