"""P18 and P25: keys on every route that is not public by name, and no exposure without saying so."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from mainspring.core.errors import StartupError
from mainspring.server.app import create_app, create_lifecycle
from mainspring.server.http.access import Access, check_exposure
from mainspring.server.http.auth import PROBES, TELLING, KeyRing
from tests.server.conftest import RunningServer, options_for
from tests.server.test_life import process, wait_until
from tests.support.serving import in_time
from tests.support.tgi_rows import tgi

pytestmark = pytest.mark.promise("P18")

KEYS = ("first-key", "second-key")
BODY = {"inputs": "x", "parameters": {"max_new_tokens": 1}}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def locked(model_directory: Path) -> Iterator[httpx.Client]:
    options = replace(options_for(model_directory), access=Access(keys=KeyRing(KEYS)))
    with RunningServer(options) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        running.wait_until_ready()
        yield client


@tgi("1.1 auth", "1.9 401")
@pytest.mark.parametrize("key", KEYS)
def test_every_key_opens(locked: httpx.Client, key: str) -> None:
    assert locked.post("/generate", json=BODY, headers=bearer(key)).status_code == 200
    assert locked.post("/generate", json=BODY, headers={"authorization": f"bearer  {key}"}).status_code == 200


@tgi("1.1 auth", "1.9 401")
@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer("first-ke"),
        bearer("first-key2"),
        bearer("FIRST-KEY"),
        {"authorization": "Bearer"},
        {"authorization": "first-key"},
        {"authorization": "Basic first-key"},
        {"x-api-key": "first-key"},
        [("authorization", "Bearer first-key"), ("authorization", "Bearer nonsense")],
    ],
)
def test_anything_else_is_401_with_an_empty_body(locked: httpx.Client, headers: Any) -> None:
    refused = locked.post("/generate", json=BODY, headers=headers)
    assert (refused.status_code, refused.content, refused.headers["www-authenticate"]) == (401, b"", "Bearer")
    assert refused.headers["x-request-id"]


def test_openai_routes_refuse_with_openais_error(locked: httpx.Client) -> None:
    refused = locked.post("/v1/chat/completions", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")


@tgi("1.1 POST /chat_tokenize")
def test_deny_by_default_on_every_route_there_is_and_any_other(model_directory: Path, locked: httpx.Client) -> None:
    async def check() -> None:
        app = create_app(create_lifecycle(options_for(model_directory)), 1000)
        routes = {
            (method, route.path) for route in app.routes if isinstance(route, Route) for method in route.methods or ()
        }
        public = {("GET", path) for path in PROBES | TELLING} | {("HEAD", path) for path in PROBES | TELLING}
        assert public <= routes
        others = {("GET", "/v1"), ("GET", "/nothing"), ("GET", "/health/"), ("GET", "/docs.js")}
        for method, path in (routes | others) - public:
            answered = locked.request(method, path.replace("{model_id:path}", "x"))
            assert answered.status_code == 401, (method, path)
        for method, path in public:
            assert locked.request(method, path).status_code == 200, (method, path)

    in_time(check)


@pytest.mark.parametrize("target", ["/v1/models", "/generate"])
@pytest.mark.parametrize("host", ["x/health?", "x/health#", "x@y/livez?a=", "/health?"])
def test_the_path_is_the_requests_own_whatever_the_host_header_says(
    locked: httpx.Client, target: str, host: str
) -> None:
    with socket.create_connection((locked.base_url.host, locked.base_url.port or 0)) as connection:
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        status = connection.makefile("rb").readline().split()[1]
    assert status in (b"400", b"401")


@tgi("1.1 GET /metrics", "1.1 GET /info")
def test_metrics_and_info_can_be_private(model_directory: Path) -> None:
    access = Access(keys=KeyRing(KEYS), private_metrics=True)
    with (
        RunningServer(replace(options_for(model_directory), access=access)) as running,
        httpx.Client(base_url=running.url) as client,
    ):
        running.wait_until_ready()
        for path in TELLING:
            assert client.get(path).status_code == 401
            assert client.get(path, headers=bearer(KEYS[0])).status_code == 200


def test_keys_are_not_kept() -> None:
    ring = KeyRing(["a-secret"])
    assert "a-secret" not in repr(vars(ring))
    assert (bool(ring), bool(KeyRing([]))) == (True, False)


def test_keys_of_a_file_change_while_it_serves(model_directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\ntwo\n")
    with process(model_directory, "--api-key-file", str(file), "--api-key", "fixed") as (url, server):

        def opens(key: str) -> bool:
            return httpx.get(f"{url}/v1/models", headers=bearer(key)).is_success

        assert [opens(key) for key in ("one", "two", "three", "fixed")] == [True, True, False, True]
        file.write_text("three\n")
        server.send_signal(signal.SIGHUP)
        wait_until(lambda: opens("three"))
        assert [opens(key) for key in ("one", "two", "three", "fixed")] == [False, False, True, True]
        file.write_text("\n")
        server.send_signal(signal.SIGHUP)
        server.send_signal(signal.SIGHUP)
        assert [opens(key) for key in ("two", "three", "fixed")] == [False, True, True]


def test_a_file_without_keys_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(StartupError, match="holds no key"):
        KeyRing([], tmp_path / "empty")
    with pytest.raises(StartupError, match="cannot be read"):
        KeyRing(["k"], tmp_path / "none")


@tgi("1.1 cors", "3 --cors-allow-origin")
def test_browsers_may_ask_from_the_origins_that_are_named(model_directory: Path) -> None:
    access = Access(keys=KeyRing(KEYS), origins=("https://chat.example",))
    asking = {"origin": "https://chat.example", "access-control-request-method": "POST"}
    asking["access-control-request-headers"] = "authorization,content-type"
    with (
        RunningServer(replace(options_for(model_directory), access=access)) as running,
        httpx.Client(base_url=running.url) as client,
    ):
        allowed = client.options("/generate", headers=asking)
        assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://chat.example")
        refused = client.options("/generate", headers=asking | {"origin": "https://other.example"})
        assert "access-control-allow-origin" not in refused.headers
        readable = client.post("/generate", json=BODY, headers={"origin": "https://chat.example"})
        assert (readable.status_code, readable.headers["access-control-allow-origin"]) == (401, "https://chat.example")


@pytest.mark.promise("P24")
def test_cors_is_off_by_default(locked: httpx.Client) -> None:
    answered = locked.get("/health", headers={"origin": "https://chat.example"})
    assert "access-control-allow-origin" not in answered.headers


@pytest.mark.promise("P25")
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_need_a_key_or_a_word(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET

    def listener() -> socket.socket:
        made = socket.socket(family)
        made.bind((host, 0))
        return made

    with listener() as exposed, pytest.raises(StartupError, match=r"--api-key .*--insecure"):
        check_exposure(exposed, Access())
    for access in (Access(keys=KeyRing(["k"])), Access(insecure=True)):
        with listener() as exposed:
            check_exposure(exposed, access)


@pytest.mark.promise("P25")
def test_loopback_needs_neither() -> None:
    with socket.create_server(("127.0.0.2", 0)) as listener:
        check_exposure(listener, Access())
