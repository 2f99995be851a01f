"""Servers that start: many at once, slowly, and never taken for dead or for ready too soon (F18, F19, P28)."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest

from mainspring.core.config import EngineConfig
from mainspring.core.request import Progress
from mainspring.server.engine.client import EngineClient
from tests.reliability.conftest import SIM
from tests.support.live_server import LiveServer, listening_server, spawn, wait_until_listening
from tests.support.model_directory import write_tiny_model
from tests.support.promises import Measured
from tests.support.serving import ask
from tests.support.tiny_tokenizers import write_word_tokenizer

AT_ONCE = 8


@pytest.mark.promise("F18")
def test_f18_servers_that_start_at_once_have_a_port_each(model: Path, tmp_path: Path, measured: Measured) -> None:
    logs = [tmp_path / f"{number}.log" for number in range(AT_ONCE)]
    processes = [spawn(str(model), log, *SIM) for log in logs]
    try:
        servers = [
            LiveServer(wait_until_listening(process, log), process, log)
            for process, log in zip(processes, logs, strict=True)
        ]
        for server in servers:
            server.wait_until_ready(60)
        engines = {server.engine.pid for server in servers}
        assert len({server.port for server in servers}) == len(engines) == AT_ONCE
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(30) for process in processes]
    assert codes == [0] * AT_ONCE
    measured(f"{AT_ONCE} at once: {AT_ONCE} ports, all ready")


@pytest.mark.promise("F19", "P28")
def test_f19_p28_it_listens_before_it_loads_and_names_the_phase(
    model: Path, tmp_path: Path, measured: Measured
) -> None:
    started = time.monotonic()
    with listening_server(str(model), tmp_path / "log", *SIM, "--backend-option", "loading=3") as server:
        assert ask_status(server, "GET", "/livez")[0] == 200
        listens = time.monotonic() - started
        phases: list[str] = []
        while True:
            ready, answer = ask_status(server, "GET", "/readyz")
            if ready == 200:
                break
            phases.append(json.loads(answer)["phase"])
            assert ready == 503
            assert ask_status(server, "GET", "/startupz")[0] in (503, 200)
            assert ask_status(server, "GET", "/health")[0] in (503, 200)
            assert ask_status(server, "GET", "/livez")[0] == 200
        assert ask_status(server, "GET", "/startupz")[0] == ask_status(server, "GET", "/health")[0] == 200
        assert ask_status(server, "POST", "/generate", b'{"inputs": "x"}')[0] == 200
    shares = [int(phase.split()[1]) for phase in phases if phase.startswith("weights")]
    assert len(set(shares)) > 3
    assert shares == sorted(shares)
    # Importing the server's libraries on a machine that is busy with other tests is most of it.
    assert listens < 10
    measured(f"listens after {listens:.1f} s; {len(set(phases))} phases named before ready")


def ask_status(server: LiveServer, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body, {"content-type": "application/json"} if body else {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.promise("P28")
def test_p28_ready_comes_after_a_real_forward(tmp_path: Path) -> None:
    steps: list[Progress] = []

    async def test() -> None:
        config = EngineConfig(model=str(write_tiny_model(tmp_path)), backend="cpu", load_format="dummy", num_blocks=32)
        client = EngineClient(config, on_progress=steps.append)
        try:
            await client.start()
            assert steps[-1].phase == "warm-up"
            assert steps[-1].done == steps[-1].total > 0
            assert len((await ask(client, [3, 4, 5], 4)).tokens) == 4
        finally:
            await client.aclose()

    asyncio.run(test())


@pytest.mark.promise("P4", "F19")
@pytest.mark.parametrize("defect", ["sockets", "tokenizer", "template"])
def test_p4_f19_what_can_never_serve_ends_and_says_why(defect: str, tmp_path: Path, measured: Measured) -> None:
    model = write_tiny_model(tmp_path / "tiny")
    write_word_tokenizer(model, 1000)
    sockets = tmp_path / ("long" * 30)
    sockets.mkdir()
    config = model / "tokenizer_config.json"
    if defect == "tokenizer":
        config.write_text('{"chat_template": [{"template": "no name"}]}')
    if defect == "template":
        config.write_text('{"chat_template": "{% for %}"}')
    environment = {"TMPDIR": str(sockets)} if defect == "sockets" else {}
    process = spawn(str(model), tmp_path / "log", *SIM, environment=environment)
    assert process.wait(30) == 71
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("mainspring: ")
    measured(f"{defect}: exit 71")
