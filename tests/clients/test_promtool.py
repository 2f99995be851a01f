"""Prometheus' own linter over what a server exposes after some traffic."""

from __future__ import annotations

import shutil
import subprocess

import httpx

from tests.clients.conftest import BUSY_KEY


def check(text: str) -> None:
    """Fails with what `promtool check metrics` says."""
    promtool = shutil.which("promtool")
    assert promtool is not None, "install Prometheus, whose package brings promtool"
    ended = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_after_answers_and_refusals(server: str) -> None:
    with httpx.Client(base_url=server) as client:
        assert client.post("/generate", json={"inputs": "hi", "parameters": {"max_new_tokens": 3}}).is_success
        assert client.post("/generate_stream", json={"inputs": "hi", "parameters": {"max_new_tokens": 3}}).is_success
        assert client.post("/generate", json={"inputs": ""}).status_code == 422
        text = client.get("/metrics").text
    assert 'tgi_request_failure{err="validation"}' in text
    check(text)


def test_under_load(busy_server: str) -> None:
    with httpx.Client(base_url=busy_server, headers={"authorization": f"Bearer {BUSY_KEY}"}) as client:
        assert client.post("/generate", json={"inputs": "hi"}).status_code == 429
        text = client.get("/metrics").text
    assert 'tgi_request_failure{err="overloaded"}' in text
    assert "tgi_batch_current_size 1" in text
    check(text)
