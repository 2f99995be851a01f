"""OpenAI's routes."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mainspring.core.errors import RequestError
from mainspring.server import sse
from mainspring.server.answers import CLIENT_GONE, json_response, service_of, stream_headers, timing_headers
from mainspring.server.body import read_body
from mainspring.server.errors import UnknownModelError
from mainspring.server.openai.collect import collect_chat, collect_completion
from mainspring.server.openai.errors import error_event, error_response
from mainspring.server.openai.identity import new_identity
from mainspring.server.openai.parse import parse_chat, parse_completion
from mainspring.server.openai.stream import stream_chat, stream_completion
from mainspring.server.openai.types import Model, ModelList
from mainspring.server.service import Service, Timing


async def chat_completions(request: Request) -> Response:
    """`POST /v1/chat/completions`."""
    timing = Timing()
    try:
        service = service_of(request)
        call = await service.parse(parse_chat, await read_body(request), timing)
        pieces = service.run(call.generations, timing)
        identity = new_identity("chatcmpl", service.model)
        if call.stream:
            return _event_stream(stream_chat(pieces, call, timing, identity), service, call.prompt_characters)
        answer = await sse.until_gone(request.receive, collect_chat(pieces, call, timing, identity))
    except RequestError as error:
        return error_response(error)
    if answer is None:
        return Response(status_code=CLIENT_GONE)
    return json_response(answer, timing_headers(service, call.prompt_characters, timing))


async def completions(request: Request) -> Response:
    """`POST /v1/completions`."""
    timing = Timing()
    try:
        service = service_of(request)
        call = await service.parse(parse_completion, await read_body(request), timing)
        pieces = service.run(call.generations, timing)
        identity = new_identity("cmpl", service.model)
        if call.stream:
            return _event_stream(stream_completion(pieces, call, timing, identity), service, call.prompt_characters)
        answer = await sse.until_gone(request.receive, collect_completion(pieces, call, timing, identity))
    except RequestError as error:
        return error_response(error)
    if answer is None:
        return Response(status_code=CLIENT_GONE)
    return json_response(answer, timing_headers(service, call.prompt_characters, timing))


async def models(request: Request) -> Response:
    """`GET /v1/models`: the one that is served."""
    try:
        return json_response(ModelList([_model(service_of(request))]))
    except RequestError as error:
        return error_response(error)


async def model(request: Request) -> Response:
    """`GET /v1/models/{id}`."""
    try:
        served = _model(service_of(request))
        if request.path_params["model_id"] != served.id:
            raise UnknownModelError(request.path_params["model_id"], served.id)
    except RequestError as error:
        return error_response(error)
    return json_response(served)


def _model(service: Service) -> Model:
    model = service.model
    return Model(id=model.id, created=model.created, owned_by=model.id, max_model_len=model.limits.max_total_tokens)


def _event_stream(events: sse.Events, service: Service, prompt_characters: int) -> Response:
    headers = stream_headers(service, prompt_characters)
    return sse.EventStream(events, refuse=error_response, failure=error_event, headers=headers)


ROUTES = [
    Route("/v1/chat/completions", chat_completions, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/models", models, methods=["GET"]),
    Route("/v1/models/{model_id:path}", model, methods=["GET"]),
]
