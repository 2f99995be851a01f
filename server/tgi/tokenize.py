"""TGI's `/tokenize` and `/chat_tokenize`: what a prompt is to the model, without running it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from mainspring.core.errors import RequestError
from mainspring.server.http.answers import json_response, service_of
from mainspring.server.http.body import parse_wire, read_body
from mainspring.server.model import ServedModel
from mainspring.server.openai.parse import chat_prompt
from mainspring.server.openai.types import ChatRequest
from mainspring.server.tgi.errors import error_response
from mainspring.server.tgi.parse import check_inputs
from mainspring.server.tgi.types import GenerateParameters, GenerateRequest

Work = Callable[[bytes, ServedModel], Any]


class SimpleToken(msgspec.Struct, frozen=True):
    """A token of a prompt and the characters it covers; special tokens cover none."""

    id: int
    text: str
    start: int
    stop: int


class ChatTokenizeResponse(msgspec.Struct, frozen=True):
    """Answer of `/chat_tokenize`."""

    tokenize_response: list[SimpleToken]
    templated_text: str


async def tokenize(request: Request) -> Response:
    """`POST /tokenize`: the body of `/generate`, of which the prompt and `truncate` count."""
    return await _answer(request, _tokenize)


async def chat_tokenize(request: Request) -> Response:
    """`POST /chat_tokenize`: the body of a chat completion, templated."""
    return await _answer(request, _chat_tokenize)


async def _answer(request: Request, work: Work) -> Response:
    try:
        body = await read_body(request, request.app.state.payload_limit)
        return json_response(await service_of(request).compute(work, body))
    except RequestError as error:
        return error_response(error)


def _tokenize(body: bytes, model: ServedModel) -> list[SimpleToken]:
    request = parse_wire(GenerateRequest, body)
    truncate = (request.parameters or GenerateParameters()).truncate
    check_inputs(request.inputs, truncate, model.limits)
    tokens = _tokens(request.inputs, model, add_special_tokens=True)
    return tokens if truncate is None else tokens[-truncate:]


def _chat_tokenize(body: bytes, model: ServedModel) -> ChatTokenizeResponse:
    prompt = chat_prompt(parse_wire(ChatRequest, body), model)
    return ChatTokenizeResponse(_tokens(prompt, model, add_special_tokens=False), prompt)


def _tokens(text: str, model: ServedModel, *, add_special_tokens: bool) -> list[SimpleToken]:
    return [
        SimpleToken(token_id, text[start:stop], start, stop)
        for token_id, start, stop in model.tokenizer.spans(text, add_special_tokens)
    ]
