"""TGI's native routes."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

import mainspring
from mainspring.core.errors import RequestError
from mainspring.server.http import sse
from mainspring.server.http.answers import CLIENT_GONE, json_response, service_of, stream_headers, timing_headers
from mainspring.server.http.body import read_body
from mainspring.server.model import ServedModel
from mainspring.server.service import Service, Timing
from mainspring.server.tgi.collect import collect
from mainspring.server.tgi.errors import error_event, error_response
from mainspring.server.tgi.parse import GenerateCall, parse_compat, parse_generate, parse_generate_stream
from mainspring.server.tgi.stream import stream
from mainspring.server.tgi.tokenize import chat_tokenize, tokenize
from mainspring.server.tgi.types import Info

Parser = Callable[[bytes, ServedModel], GenerateCall]


async def generate(request: Request) -> Response:
    """`POST /generate`: one JSON answer."""
    return await _answer(request, parse_generate, in_list=False)


async def generate_stream(request: Request) -> Response:
    """`POST /generate_stream`: an event a token."""
    return await _answer(request, parse_generate_stream, in_list=False)


async def compat_generate(request: Request) -> Response:
    """`POST /`: as the two above, chosen by `stream`; the JSON answer is a list of one."""
    return await _answer(request, parse_compat, in_list=True)


async def info(request: Request) -> Response:
    """`GET /info`: the model and the limits."""
    try:
        service = service_of(request)
    except RequestError as error:
        return error_response(error)
    limits = service.model.limits
    return json_response(
        Info(
            model_id=service.model.id,
            model_sha=service.model.revision,
            model_pipeline_tag="text-generation",
            max_concurrent_requests=limits.max_concurrent_requests,
            max_best_of=limits.max_best_of,
            max_stop_sequences=limits.max_stop_sequences,
            max_input_tokens=limits.max_input_tokens,
            max_total_tokens=limits.max_total_tokens,
            validation_workers=limits.validation_workers,
            max_client_batch_size=limits.max_client_batch_size,
            router="mainspring",
            version=mainspring.__version__,
            sha=None,
            docker_label=None,
            model_dtype=service.ready.dtype,
            model_device_type=service.ready.backend,
            num_shard=service.ready.num_shard,
            speculate=service.ready.speculate,
        )
    )


async def _answer(request: Request, parser: Parser, *, in_list: bool) -> Response:
    try:
        body = await read_body(request, request.app.state.payload_limit)
    except RequestError as error:
        return error_response(error)
    return await answer_body(request, body, parser, in_list=in_list)


async def answer_body(request: Request, body: bytes, parser: Parser, *, in_list: bool) -> Response:
    """The answer to a body that has been read, whichever route it came by."""
    timing = Timing()
    try:
        service = service_of(request)
        call = await service.parse(parser, body, timing)
        if call.stream:
            return _event_stream(service, call, timing)
        pieces = service.run([call.generation], timing)
        answer = await sse.until_gone(request.receive, collect(pieces, call, service.model.tokenizer))
    except RequestError as error:
        return error_response(error)
    if answer is None:
        return Response(status_code=CLIENT_GONE)
    return json_response([answer] if in_list else answer, timing_headers(service, len(call.inputs), timing))


def _event_stream(service: Service, call: GenerateCall, timing: Timing) -> Response:
    events = stream(service.run([call.generation], timing), call, service.model.tokenizer)
    headers = stream_headers(service, len(call.inputs))
    return sse.EventStream(events, refuse=error_response, failure=error_event, headers=headers)


ROUTES = [
    Route("/", compat_generate, methods=["POST"]),
    Route("/generate", generate, methods=["POST"]),
    Route("/generate_stream", generate_stream, methods=["POST"]),
    Route("/info", info, methods=["GET"]),
    Route("/tokenize", tokenize, methods=["POST"]),
    Route("/chat_tokenize", chat_tokenize, methods=["POST"]),
]
