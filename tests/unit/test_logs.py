"""Lines for machines and for people, with the request's id and never its content."""

from __future__ import annotations

import json
import logging

import pytest

from mainspring.server.telemetry.logs import JSONLines, Text, event, request_id, requests_log


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger=requests_log.name)
    return caplog


def test_json_lines(lines: pytest.LogCaptureFixture) -> None:
    token = request_id.set("abc")
    event("request finished", prompt_tokens=3, ttft_ms=None)
    shown = JSONLines().format(lines.records[0])
    request_id.reset(token)
    line = json.loads(shown)
    assert "\n" not in shown
    assert line.pop("ts").endswith("+00:00")
    assert line == {
        "level": "info",
        "logger": "mainspring.requests",
        "event": "request finished",
        "request_id": "abc",
        "prompt_tokens": 3,
        "ttft_ms": None,
    }


def test_traces_stay_on_their_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.LogRecord("n", logging.ERROR, "f", 1, "it failed: %d", (5,), (type(error), error, None))
    line = json.loads(JSONLines().format(record))
    assert (line["event"], line["level"], "two\nlines" in line["trace"]) == ("it failed: 5", "error", True)


def test_lines_for_people(lines: pytest.LogCaptureFixture) -> None:
    event("request finished", prompt_tokens=3, ttft_ms=None)
    assert Text("%(levelname)s %(message)s").format(lines.records[0]) == "INFO request finished prompt_tokens=3"


def test_requests_are_not_logged_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    requests_log.setLevel(logging.WARNING)
    event("request finished", prompt_tokens=3)
    assert not caplog.records
