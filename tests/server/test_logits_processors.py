"""The watermark over HTTP, on the cpu backend with a tiny model: with a delta this large every token is green."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mainspring.core.config import EngineConfig
from mainspring.server.app import ServerOptions
from mainspring.server.source import ModelSource
from mainspring.server.watermark import detect
from tests.server.conftest import MODEL_ID, RunningServer
from tests.support.tgi_rows import tgi

KEY = 99
PROMPT = "w300 w301 w302"


@pytest.fixture(scope="module")
def client(model_directory: Path) -> Iterator[httpx.Client]:
    options = ServerOptions(
        source=ModelSource(model_directory, MODEL_ID),
        engine=EngineConfig(model=str(model_directory), backend="cpu", load_format="dummy", max_length=256),
        processor_defaults={"watermark": {"delta": 100.0, "key": KEY}},
    )
    with RunningServer(options) as running:
        running.wait_until_ready()
        with httpx.Client(base_url=running.url, timeout=30) as http:
            yield http


def tgi_tokens(client: httpx.Client, **parameters: Any) -> list[int]:
    asked = {"max_new_tokens": 40, "details": True} | parameters
    answer = client.post("/generate", json={"inputs": PROMPT, "parameters": asked})
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["details"]["tokens"]]


def complete(client: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"prompt": PROMPT, "max_tokens": 40, "temperature": 0, "ignore_eos": True} | fields
    return client.post("/v1/completions", json=body)


@tgi("1.2 watermark")
def test_tgi_s_field_marks_and_the_detector_finds_it(client: httpx.Client) -> None:
    tokens = tgi_tokens(client, watermark=True, do_sample=True, seed=3)
    found = detect(tokens, key=KEY)
    assert found.num_green == found.num_scored > 20
    assert found.detected()
    assert not detect(tgi_tokens(client, watermark=False, do_sample=True, seed=3), key=KEY).detected()


def test_both_protocols_and_both_fields_mean_the_same(client: httpx.Client) -> None:
    short, long = (
        complete(client, watermark=True).json()["choices"][0]["text"],
        complete(client, logits_processors=[{"name": "watermark"}]).json()["choices"][0]["text"],
    )
    assert short == long != complete(client).json()["choices"][0]["text"]
    assert complete(client, watermark=False, logits_processors=[]).status_code == 200
    chat = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 4, "watermark": True}
    assert client.post("/v1/chat/completions", json=chat).status_code in (200, 400)  # 400: no template


def test_a_delta_of_nothing_changes_nothing(client: httpx.Client) -> None:
    off = complete(client, logits_processors=[{"name": "watermark", "delta": 0}])
    assert off.json()["choices"][0]["text"] == complete(client).json()["choices"][0]["text"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("watermark", "`logits_processors` must be a list of objects with a `name`"),
        (["watermark"], "`logits_processors.0` must be an object with a `name`"),
        ([{"name": "watermarks"}], "unknown logits processor 'watermarks'; did you mean 'watermark'? Known: watermark"),
        ([{"name": "watermark"}] * 2, "`logits_processors` names 2 processors; there are 1, each at most once"),
        ([{"name": "watermark", "gama": 0.5}], "unknown parameter 'gama'; did you mean 'gamma'?"),
        ([{"name": "watermark", "gamma": 2}], "`logits_processors.0.gamma` is 2; it must be >= 0.01 and <= 0.99"),
        ([{"name": "watermark", "gamma": True}], "`logits_processors.0.gamma` must be a number"),
        ([{"name": "watermark", "key": 1.5}], "`logits_processors.0.key` is 1.5, which is no integer"),
        ([{"name": "watermark", "key": 2**31}], "`logits_processors.0.key` is 2147483648"),
    ],
)
def test_refusals_name_the_field_and_the_way_out(client: httpx.Client, asked: Any, message: str) -> None:
    answer = complete(client, logits_processors=asked, stream=True)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"].startswith("logits_processors")
