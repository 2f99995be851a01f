"""The API's description: valid, complete, true about statuses, and readable without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from mainspring.server.app import create_app, create_lifecycle
from mainspring.server.http.openapi import OPERATIONS, Operation, document
from tests.server.conftest import options_for
from tests.support.serving import in_time
from tests.support.tgi_rows import tgi

REFERENCES = re.compile(r"#/components/schemas/([A-Za-z0-9._-]+)")


def test_every_route_is_described_and_no_other(model_directory: Path) -> None:
    async def check() -> None:
        routes = {
            (method.lower(), route.path.replace(":path", ""))
            for route in create_app(create_lifecycle(options_for(model_directory)), 1000).routes
            if isinstance(route, Route)
            for method in (route.methods or set()) - {"HEAD"}
        }
        assert routes == {(operation.method, operation.path) for operation in OPERATIONS} | {("get", "/docs.js")}

    in_time(check)


def test_references_lead_somewhere() -> None:
    described = document()
    schemas = described["components"]["schemas"]
    assert set(REFERENCES.findall(str(described))) <= schemas.keys()
    assert set(schemas) <= set(REFERENCES.findall(str(described)))


@tgi("1.1 GET /api-doc/openapi.json")
def test_document_is_served_where_tgi_had_it(client: httpx.Client) -> None:
    assert client.get("/openapi.json").json() == client.get("/api-doc/openapi.json").json() == document()


@pytest.mark.parametrize("operation", [operation for operation in OPERATIONS if operation.request])
def test_examples_work(client: httpx.Client, operation: Operation) -> None:
    answer = client.post(operation.path, json=operation.example)
    assert answer.status_code == 200, answer.text


def test_every_tag_is_listed() -> None:
    assert next(tag["name"] for tag in document()["tags"]) == "OpenAI"
    assert {tag["name"] for tag in document()["tags"]} == {operation.tag for operation in OPERATIONS}


JSON_TYPE = {"content-type": "application/json"}
CASES = [
    {"content": b"{", "headers": JSON_TYPE},
    {"content": b"[]", "headers": JSON_TYPE},
    {"content": b"{}", "headers": JSON_TYPE},
    {"content": b"{}", "headers": {"content-type": "text/plain"}},
    {"content": b" " * 2_000_001, "headers": JSON_TYPE},
    {"json": {"inputs": 1, "prompt": {}, "messages": 3, "instances": None}},
    {"json": {"model": "other", "messages": [{"role": "user", "content": "x"}], "prompt": "x"}},
    {"headers": {f"x-{number}": "y" for number in range(101)}},
]


@pytest.mark.parametrize("case", CASES)
def test_what_is_answered_is_described(client: httpx.Client, case: dict[str, Any]) -> None:
    described = document()
    for operation in OPERATIONS:
        given = case if operation.method == "post" else {"headers": case.get("headers", {})}
        answered = client.request(operation.method, operation.path.replace("{model_id}", "other"), **given)
        responses = described["paths"][operation.path][operation.method]["responses"]
        assert str(answered.status_code) in responses, (operation.path, answered.status_code)
        content = responses[str(answered.status_code)].get("content", {})
        media_type = answered.headers.get("content-type", "").partition(";")[0]
        assert (media_type in content) if answered.content else not content, (operation.path, media_type)


@tgi("1.1 GET /docs")
def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    page, script = client.get("/docs"), client.get("/docs.js")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert script.headers["content-type"].startswith("text/javascript")
    assert not re.findall(r"(?:https?:)?//[a-z]", page.text + re.sub(r"^//.*", "", script.text, flags=re.MULTILINE))
    assert "innerHTML" not in script.text
