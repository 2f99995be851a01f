"""Routes that hosting platforms call: SageMaker's `/invocations` and Vertex AI's `/vertex`.

They carry the bodies of the other routes, so what is here is only which of these a body is. SageMaker's `/ping` is one
of `probes.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

import msgspec
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mainspring.core.errors import RequestError
from mainspring.server.errors import invalid
from mainspring.server.http import sse
from mainspring.server.http.answers import CLIENT_GONE, json_response, service_of
from mainspring.server.http.body import WireModel, parse_keys, parse_wire, read_body
from mainspring.server.model import ServedModel
from mainspring.server.openai import routes as openai_routes
from mainspring.server.openai.parse import chat_call
from mainspring.server.openai.types import ChatRequest
from mainspring.server.service import Service, Timing
from mainspring.server.text.generation import Generation
from mainspring.server.tgi import routes as tgi_routes
from mainspring.server.tgi.errors import error_response
from mainspring.server.tgi.parse import parse_compat, vertex_call
from mainspring.server.tgi.types import GenerateRequest


class VertexRequest(WireModel):
    """Body of `/vertex`: prompts with parameters, or chats."""

    instances: Annotated[list[GenerateRequest | ChatRequest], Field(min_length=1)]


class VertexResponse(msgspec.Struct, frozen=True):
    """Answer of `/vertex`: a text an instance."""

    predictions: list[str]


@dataclass(frozen=True, slots=True)
class _Prediction:
    generation: Generation
    before: str
    """Text that goes before the answer: the prompt, where it was asked for."""


async def invocations(request: Request) -> Response:
    """`POST /invocations`: a body of `POST /`, of chat completions or of completions, answered as that route would."""
    try:
        body = await read_body(request, request.app.state.payload_limit)
        keys = parse_keys(body)
    except RequestError as error:
        return error_response(error)
    if "inputs" in keys:
        return await tgi_routes.answer_body(request, body, parse_compat, in_list=True)
    if "messages" in keys:
        return await openai_routes.answer_body(request, body, openai_routes.CHAT)
    if "prompt" in keys:
        return await openai_routes.answer_body(request, body, openai_routes.COMPLETION)
    return error_response(invalid("the body must have `inputs`, `messages` or `prompt`"))


async def vertex(request: Request) -> Response:
    """`POST /vertex`: all instances at once, one text for each, in their order."""
    timing = Timing()
    try:
        service = service_of(request)
        body = await read_body(request, request.app.state.payload_limit)
        predictions = await service.parse(_parse_vertex, body, timing)
        texts = await sse.until_gone(request.receive, _collect(service, predictions, timing))
    except RequestError as error:
        return error_response(error)
    return Response(status_code=CLIENT_GONE) if texts is None else json_response(VertexResponse(texts))


def _parse_vertex(body: bytes, model: ServedModel) -> list[_Prediction]:
    instances = parse_wire(VertexRequest, body).instances
    limit = model.limits.max_client_batch_size
    if len(instances) > limit:
        raise invalid(f"`instances` has {len(instances)} entries; at most {limit} are allowed", "instances")
    predictions = [_prediction(instance, model) for instance in instances]
    if any(prediction.generation.n != 1 for prediction in predictions):
        raise invalid("a prediction is one text: leave `best_of` and `n` out", "instances")
    return predictions


def _prediction(instance: GenerateRequest | ChatRequest, model: ServedModel) -> _Prediction:
    if isinstance(instance, GenerateRequest):
        call = vertex_call(instance, model)
        return _Prediction(call.generation, call.inputs if call.return_full_text else "")
    return _Prediction(chat_call(instance, model).generations[0], "")


async def _collect(service: Service, predictions: Sequence[_Prediction], timing: Timing) -> list[str]:
    texts = [[prediction.before] for prediction in predictions]
    async with aclosing(service.run([prediction.generation for prediction in predictions], timing)) as pieces:
        async for piece in pieces:
            texts[piece.index].append(piece.text)
    return ["".join(parts) for parts in texts]


ROUTES = [
    Route("/invocations", invocations, methods=["POST"]),
    Route("/vertex", vertex, methods=["POST"]),
]
