"""The API as an OpenAPI 3.1 document, made from the wire types: every route, every status it may answer.

`OPERATIONS` is the list of routes that the document tells of; a test holds it against the routes that there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from pydantic.json_schema import models_json_schema

import mainspring
from mainspring.server.http.body import WireModel
from mainspring.server.http.clouds import VertexRequest, VertexResponse
from mainspring.server.openai import types as openai
from mainspring.server.tgi import types as tgi
from mainspring.server.tgi.tokenize import ChatTokenizeResponse, SimpleToken

_TEXTS = {
    200: "The answer",
    400: "The body is not JSON, or a field of it is wrong",
    401: "No valid API key",
    404: "There is no such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not `application/json`",
    422: "A field of the body is wrong, or asks for what is not there",
    424: "The model failed on this request",
    429: "Too many requests are in progress; `Retry-After` says when to come back",
    431: "Too many or too long headers",
    500: "The server failed on this request",
    503: "The model is loading, or the server is shutting down; `Retry-After` says when to come back",
    504: "The request took longer than it may",
}
_BODY = (400, 401, 408, 413, 415, 431)
"""What every route with a body may answer besides its own."""
_TGI_RUN = (422, 424, 429, 500, 503, 504)
_OPENAI_RUN = (404, 429, 500, 503, 504)
_TAGS = ("OpenAI", "Text Generation Inference", "Platforms", "Operation")
"""In the order in which people read them."""
_PROMPT = {"inputs": "The capital of France is", "parameters": {"max_new_tokens": 8}}
_CHAT = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 16,
    "temperature": 0,
}
_RETRY = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    summary: str
    tag: str
    request: tuple[type[WireModel], ...] = ()
    """One of these is the body."""
    example: Mapping[str, Any] | None = None
    """A body that works on every server."""
    answers: tuple[Any, ...] = ()
    """Types of a JSON answer with status 200: one of them."""
    events: tuple[Any, ...] = ()
    """Types of the events, where the answer may be a stream: one of them in each stream."""
    ends_with_done: bool = False
    """Whether the last event of a stream may be `[DONE]`, as OpenAI's."""
    failures: tuple[int, ...] = (401, 431)
    failure: tuple[Any, ...] = (tgi.ErrorResponse,)
    """Types of the body of every failure: one of them."""
    media_type: str = "application/json"


def _generation(path: str, summary: str, **fields: Any) -> Operation:
    return Operation(method="post", path=path, summary=summary, tag="Text Generation Inference", **fields)


def _openai(method: str, path: str, summary: str, **fields: Any) -> Operation:
    return Operation(method=method, path=path, summary=summary, tag="OpenAI", failure=(openai.ErrorResponse,), **fields)


def _plain(path: str, summary: str, **fields: Any) -> Operation:
    return Operation(method="get", path=path, summary=summary, tag="Operation", **fields)


OPERATIONS = (
    _generation(
        "/generate",
        "Generate text",
        request=(tgi.GenerateRequest,),
        example=_PROMPT,
        answers=(tgi.GenerateResponse,),
        failures=(*_BODY, *_TGI_RUN),
    ),
    _generation(
        "/generate_stream",
        "Generate text, an event a token",
        request=(tgi.GenerateRequest,),
        example=_PROMPT,
        events=(tgi.StreamResponse,),
        failures=(*_BODY, *_TGI_RUN),
    ),
    _generation(
        "/",
        "Generate text; with `stream`, an event a token",
        request=(tgi.CompatGenerateRequest,),
        example=_PROMPT,
        answers=(list[tgi.GenerateResponse],),
        events=(tgi.StreamResponse,),
        failures=(*_BODY, *_TGI_RUN),
    ),
    _generation(
        "/tokenize",
        "Tokenise a prompt",
        request=(tgi.GenerateRequest,),
        example=_PROMPT,
        answers=(list[SimpleToken],),
        failures=(*_BODY, 422, 429, 500, 503),
    ),
    _generation(
        "/chat_tokenize",
        "Template and tokenise a chat",
        request=(openai.ChatRequest,),
        example=_CHAT,
        answers=(ChatTokenizeResponse,),
        failures=(*_BODY, 422, 429, 500, 503),
    ),
    _openai(
        "post",
        "/v1/chat/completions",
        "Answer a chat",
        request=(openai.ChatRequest,),
        example=_CHAT,
        answers=(openai.ChatCompletion,),
        events=(openai.ChatChunk,),
        ends_with_done=True,
        failures=(*_BODY, *_OPENAI_RUN),
    ),
    _openai(
        "post",
        "/v1/completions",
        "Continue prompts",
        request=(openai.CompletionRequest,),
        example={"prompt": "The capital of France is", "max_tokens": 8, "temperature": 0},
        answers=(openai.Completion,),
        events=(openai.Completion,),
        ends_with_done=True,
        failures=(*_BODY, *_OPENAI_RUN),
    ),
    _openai("get", "/v1/models", "The models: one", answers=(openai.ModelList,), failures=(401, 431, 503)),
    _openai("get", "/v1/models/{model_id}", "The model", answers=(openai.Model,), failures=(401, 404, 431, 503)),
    Operation(
        method="post",
        path="/invocations",
        summary="SageMaker: a body of `/`, of chat completions or of completions",
        tag="Platforms",
        request=(tgi.CompatGenerateRequest, openai.ChatRequest, openai.CompletionRequest),
        example=_CHAT,
        answers=(list[tgi.GenerateResponse], openai.ChatCompletion, openai.Completion),
        events=(tgi.StreamResponse, openai.ChatChunk, openai.Completion),
        ends_with_done=True,
        failures=(*_BODY, 404, *_TGI_RUN),
        failure=(tgi.ErrorResponse, openai.ErrorResponse),
    ),
    Operation(
        method="post",
        path="/vertex",
        summary="Vertex AI: several prompts or chats, a text each",
        tag="Platforms",
        request=(VertexRequest,),
        example={"instances": [_PROMPT]},
        answers=(VertexResponse,),
        failures=(*_BODY, *_TGI_RUN),
    ),
    _plain("/info", "The model and the limits", answers=(tgi.Info,), failures=(401, 431, 503)),
    _plain("/health", "200 while requests are answered", failures=(431, 503)),
    _plain("/ping", "As `/health`", failures=(431, 503)),
    _plain("/", "As `/health`", failures=(431, 503)),
    _plain("/livez", "200 while the process runs", failures=(431,)),
    _plain(
        "/readyz", "200 while requests are answered; names the phase", answers=(dict[str, str],), failures=(431, 503)
    ),
    _plain("/startupz", "As `/readyz`", answers=(dict[str, str],), failures=(431, 503)),
    _plain("/metrics", "Numbers for Prometheus", answers=(str,), media_type="text/plain"),
    _plain("/openapi.json", "This document", answers=(dict[str, Any],)),
    _plain("/api-doc/openapi.json", "This document, where TGI had its own", answers=(dict[str, Any],)),
    _plain("/docs", "This document for people", answers=(str,), media_type="text/html"),
)


def document() -> dict[str, Any]:
    """The whole document."""
    schemas = _Schemas(OPERATIONS)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _operation(operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Mainspring",
            "version": mainspring.__version__,
            "description": "One LLM inference server for any accelerator.",
        },
        "tags": [{"name": tag} for tag in _TAGS],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


class _Schemas:
    """Every type's schema, and what the types refer to."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        requests = {model: None for operation in operations for model in operation.request}
        refs, shared = models_json_schema(
            [(model, "validation") for model in requests], ref_template="#/components/schemas/{model}"
        )
        self.components: dict[str, Any] = shared["$defs"]
        self._refs: dict[Any, dict[str, Any]] = {model: ref for (model, _), ref in refs.items()}
        wanted = {_key(kind): kind for operation in operations for kind in _answer_types(operation)}
        schemas, components = msgspec.json.schema_components(
            wanted.values(), ref_template="#/components/schemas/{name}"
        )
        self._refs.update(zip(wanted, schemas, strict=True))
        self.components.update(components)

    def of(self, *types: Any) -> dict[str, Any]:
        """One of the types."""
        found = [self._refs[_key(kind)] for kind in types]
        return found[0] if len(found) == 1 else {"anyOf": found}


def _answer_types(operation: Operation) -> list[Any]:
    return [*operation.answers, *operation.events, *operation.failure]


def _key(kind: Any) -> Any:
    """Generic aliases are equal but not the same; types are their own keys."""
    return kind if isinstance(kind, type) else str(kind)


def _operation(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    failure = schemas.of(*operation.failure)
    responses = {"200": _success(operation, schemas)}
    for status in sorted(operation.failures):
        responses[str(status)] = _failure(operation, status, failure)
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": f"{operation.method}{operation.path.replace('/', '_').replace('{', '').replace('}', '')}",
        "tags": [operation.tag],
        "responses": responses,
    }
    if operation.request:
        content = {"application/json": {"schema": schemas.of(*operation.request), "example": operation.example}}
        described["requestBody"] = {"required": True, "content": content}
    if 401 in operation.failures:
        described["security"] = [{"key": []}, {}]  # keys are the operator's choice
    if "{model_id}" in operation.path:
        described["parameters"] = [
            {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        ]
    return described


def _success(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if operation.answers:
        content[operation.media_type] = {"schema": schemas.of(*operation.answers)}
    if operation.events:
        content["text/event-stream"] = {"schema": _event(operation, schemas)}
    return {"description": _TEXTS[200], **({"content": content} if content else {})}


def _event(operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    """One event: before OpenAPI 3.2 with its `itemSchema`, the schema of a sequence is that of each item."""
    data = {
        "type": "string",
        "contentMediaType": "application/json",
        "contentSchema": schemas.of(*operation.events, *operation.failure),
    }
    ends = operation.ends_with_done
    return {
        "type": "object",
        "description": "A server-sent event; an error is the last one",
        "properties": {"data": {"anyOf": [{"const": "[DONE]"}, data]} if ends else data},
        "required": ["data"],
    }


def _failure(operation: Operation, status: int, shape: Mapping[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {"description": _TEXTS[status]}
    if status == 431:
        described["content"] = {"text/plain": {"schema": {"type": "string"}}}
    elif status == 401 and not operation.path.startswith("/v1/"):
        pass  # empty, as TGI's
    elif operation.path in ("/readyz", "/startupz"):
        described["content"] = {"application/json": {"schema": {"type": "object"}}}
    else:
        described["content"] = {"application/json": {"schema": dict(shape)}}
    if status in (429, 503):
        described["headers"] = _RETRY
    return described
