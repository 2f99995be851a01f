"""P19: what a peer may send, how much of it and how slowly."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.core.errors import StartupError
from mainspring.server.http import body
from mainspring.server.http.body import MAX_DEPTH, json_depth
from mainspring.server.http.certificate import Certificate
from mainspring.server.http.connection import MAX_HEADERS, ConnectionLimits
from mainspring.server.lifecycle import RequestLimits
from tests.server.conftest import RunningServer, options_for
from tests.server.test_life import wait_until
from tests.support.tgi_rows import tgi

pytestmark = pytest.mark.promise("P19")

HEADER_SECONDS = 0.4


@pytest.fixture(scope="module")
def strict(model_directory: Path) -> Iterator[RunningServer]:
    options = replace(
        options_for(model_directory),
        connections=ConnectionLimits(header_seconds=HEADER_SECONDS, per_peer=20),
        limits=RequestLimits(max_request_tokens=3000),
    )
    with RunningServer(options) as running:
        running.wait_until_ready()
        yield running


def connect(server: RunningServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=10)


def seconds_until_closed(connection: socket.socket) -> float:
    begun = time.monotonic()
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return time.monotonic() - begun


@pytest.mark.parametrize("start", [b"", b"GET /livez HTTP/1.1\r\nHost: x\r\nx-slow: "])
def test_headers_that_never_end_are_cut_off(strict: RunningServer, start: bytes) -> None:
    with connect(strict) as connection:
        connection.sendall(start)
        assert HEADER_SECONDS * 0.8 < seconds_until_closed(connection) < 5


def test_a_byte_now_and_then_wins_no_time(strict: RunningServer) -> None:
    with connect(strict) as connection:
        begun = time.monotonic()
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        connection.settimeout(HEADER_SECONDS / 8)
        while time.monotonic() - begun < 5:
            try:
                connection.sendall(b"x")
                if not connection.recv(1):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - begun < 3


def test_the_second_request_of_a_connection_has_its_own_time(strict: RunningServer) -> None:
    with connect(strict) as connection:
        answers = connection.makefile("rb")
        for _ in range(3):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answers.readline().split()[1] == b"200"
            while answers.readline() != b"\r\n":
                pass
        connection.sendall(b"GET /li")
        assert seconds_until_closed(connection) < 5


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ({f"x-{number}": "y" for number in range(MAX_HEADERS + 1)}, {431}),
        ({"x-long": "y" * 17_000}, {400, 431}),
        ({"x-long": "y" * 60_000}, {400, 431}),
        ({"x-long": "y" * 12_000}, {200}),
    ],
)
def test_headers_have_a_number_and_a_size(strict: RunningServer, headers: dict[str, str], statuses: set[int]) -> None:
    with httpx.Client(base_url=strict.url) as client:
        assert client.get("/livez", headers=headers).status_code in statuses


def test_endless_headers_are_never_kept(strict: RunningServer) -> None:
    with connect(strict) as connection:
        connection.sendall(b"GET /livez HTTP/1.1\r\n")
        sent = 0
        try:
            while sent < 5_000_000:
                sent += connection.send(b"x-a: " + b"y" * 65536)
        except OSError:
            pass
        assert sent < 5_000_000


def test_one_address_holds_so_many_connections(strict: RunningServer) -> None:
    held = [connect(strict) for _ in range(30)]
    try:
        shut = 0
        for connection in held:
            connection.settimeout(HEADER_SECONDS / 4)
            try:
                shut += not connection.recv(1)
            except ConnectionResetError:
                shut += 1
            except TimeoutError:
                pass
            if shut >= 10:
                break
        assert shut >= 10
    finally:
        for connection in held:
            connection.close()


def test_slow_bodies_are_given_up(strict: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_SECONDS", 0.2)
    for route in ("/generate", "/v1/completions", "/tokenize", "/invocations"):
        with connect(strict) as connection:
            head = f"POST {route} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{{"
            connection.sendall(head.encode())
            assert connection.recv(20).split()[1] == b"408"


def test_a_body_that_nobody_reads_does_not_hold_the_connection(strict: RunningServer) -> None:
    with connect(strict) as connection:
        head = "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 99999999\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(20).split()[1] == b"415"
        connection.settimeout(0.1)
        begun = time.monotonic()
        while time.monotonic() - begun < 8:
            try:
                connection.sendall(b"x")
                if not connection.recv(65536):
                    break
            except TimeoutError:
                continue
            except OSError:
                break
        assert time.monotonic() - begun < 6


@tgi("1.1 malformed body", "1.9 400")
@pytest.mark.parametrize("route", ["/generate", "/v1/chat/completions", "/tokenize", "/chat_tokenize", "/vertex"])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 1000, 100_000])
def test_nesting_is_bounded_before_parsing(strict: RunningServer, route: str, depth: int) -> None:
    content = b'{"inputs":"x","a":' * (depth // 2) + b"[" * (depth // 2 + 1)
    refused = httpx.post(strict.url + route, content=content, headers={"content-type": "application/json"})
    assert refused.status_code == 400
    assert "nested more than 64 deep" in refused.text


def test_nesting_up_to_the_bound_is_read(strict: RunningServer) -> None:
    nested: Any = 1
    for _ in range(MAX_DEPTH - 1):
        nested = [nested]
    answered = httpx.post(
        f"{strict.url}/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 1}, "a": nested}
    )
    assert answered.status_code == 200


JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='a"\\[]{}\n😀', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='"\\[{', max_size=3), inner, max_size=3)
    ),
)


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(JSON)
def test_depth_of_json_is_that_of_its_value(value: Any) -> None:
    padding = [[]] * (MAX_DEPTH + 1)  # enough brackets for the slow path
    assert json_depth(json.dumps([value, *padding]).encode()) == max(1 + depth_of(value), 2)


@pytest.mark.parametrize("unit", [b"[]", b'[""', b'["\\"[', b"\\[", b'"[', b'{"a":'])
def test_depth_takes_linear_time(unit: bytes) -> None:
    def seconds(size: int) -> float:
        content = unit * (size // len(unit))
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            json_depth(content)
            times.append(time.perf_counter() - begun)
        return min(times)

    assert seconds(2_000_000) < 30 * seconds(250_000) + 0.01  # 8 times the work; were it quadratic, 64 times


@pytest.mark.parametrize(
    ("route", "fields"),
    [
        ("/v1/completions", {"prompt": "x", "n": 4, "max_tokens": 1000}),
        ("/v1/completions", {"prompt": ["x", "y"], "n": 2, "max_tokens": 1000, "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "n": 2}),
        ("/generate", {"inputs": "x", "parameters": {"best_of": 2, "do_sample": True}}),
    ],
)
def test_the_product_of_prompts_sequences_and_tokens_is_bounded(
    strict: RunningServer, route: str, fields: dict[str, Any]
) -> None:
    refused = httpx.post(strict.url + route, json=fields)
    assert refused.status_code == (422 if route == "/generate" else 400)
    assert "at most 3000 are allowed" in refused.text


def test_stop_strings_have_a_length(strict: RunningServer) -> None:
    refused = httpx.post(f"{strict.url}/generate", json={"inputs": "x", "parameters": {"stop": ["s" * 1001]}})
    assert (refused.status_code, "at most 1000 characters" in refused.text) == (422, True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    directory = tmp_path_factory.mktemp("tls")
    made = Certificate(directory / "cert.pem", directory / "key.pem")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    paths = ["-out", str(made.file), "-keyout", str(made.key_file)]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(["openssl", "req", "-x509", "-days", "2", *key, *names, *paths], check=True, capture_output=True)
    return made


def test_tls(model_directory: Path, certificate: Certificate) -> None:
    certificate.check()
    trusting = ssl.create_default_context(cafile=str(certificate.file))
    with RunningServer(replace(options_for(model_directory), certificate=certificate)) as running:
        url = running.url.replace("http:", "https:")
        with httpx.Client(base_url=url, verify=trusting) as client:
            wait_until(lambda: listens(client))
            assert client.get("/livez").status_code == 200
        with httpx.Client(base_url=running.url) as plain, pytest.raises(httpx.TransportError):
            plain.get("/livez")
        assert [offers(running, version) for version in ("tls1_1", "tls1_2", "tls1_3")] == [False, True, True]


def listens(client: httpx.Client) -> bool:
    try:
        return client.get("/livez").is_success
    except httpx.ConnectError:
        return False


def offers(server: RunningServer, version: str) -> bool:
    """Whether the server speaks this version of TLS."""
    command = ["openssl", "s_client", "-connect", server.url.removeprefix("http://"), f"-{version}"]
    ended = subprocess.run([*command, "-cipher", "ALL:@SECLEVEL=0"], capture_output=True, input=b"", timeout=20)
    return b"BEGIN CERTIFICATE" in ended.stdout


def test_certificates_that_cannot_be_used(tmp_path: Path, certificate: Certificate) -> None:
    with pytest.raises(StartupError, match=r"--ssl-keyfile .* does not exist"):
        Certificate(certificate.file, tmp_path / "none.pem").check()
    with pytest.raises(StartupError, match="no certificate with its unencrypted private key"):
        Certificate(certificate.key_file, certificate.key_file).check()
