"""Marked and plain texts of the real model, told apart by the command that reads nothing but the text."""

from __future__ import annotations

import json

import httpx
import pytest
from click.testing import CliRunner

from mainspring.server import cli
from tests.support.live_server import LiveServer

PROMPTS = ["The history of the railway began", "A good way to cook rice is", "Scientists have found that"]


@pytest.mark.parametrize("watermark", [True, False])
def test_texts_are_told_apart(server: LiveServer, watermark: bool) -> None:
    body = {"prompt": PROMPTS, "max_tokens": 120, "temperature": 1, "seed": 4, "watermark": watermark}
    answer = httpx.post(f"{server.url}/v1/completions", json=body | {"ignore_eos": True}, timeout=120)
    assert answer.status_code == 200, answer.text
    for choice in answer.json()["choices"]:
        said = CliRunner().invoke(cli.main, ["watermark", "detect", "demo"], input=choice["text"])
        assert said.exit_code == (0 if watermark else 1), said.output
        assert json.loads(said.output)["watermarked"] is watermark
