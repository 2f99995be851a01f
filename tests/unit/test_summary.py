"""What the operator reads when the server is ready."""

from __future__ import annotations

import io
import logging
import shlex

import pytest

from mainspring.core.request import Ready
from mainspring.server.summary import Summary

READY = Ready(
    max_length=2048,
    vocab_size=10,
    block_size=16,
    num_blocks=512,
    max_sequences=64,
    backend="sim",
    device="simulated laptop",
    dtype="float32",
    notes=("the only backend that can run here",),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def summary(stream: io.StringIO, *, needs_key: bool = False) -> Summary:
    notes = ["--cuda-graphs 1 has no effect: because"]
    return Summary(url="http://127.0.0.1:3000", model_id="a/b", needs_key=needs_key, notes=notes, stream=stream)


def test_a_panel_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Terminal()
    summary(screen).show(READY, 1.25)
    shown = screen.getvalue()
    for word in ("http://127.0.0.1:3000", "a/b", "sim: simulated laptop", "the only backend", "2,048", "--cuda-graphs"):
        assert word in shown
    command = shlex.split(shown.splitlines()[-1])
    assert command[:2] == ["curl", "http://127.0.0.1:3000/v1/chat/completions"]
    assert "Bearer" not in shown
    summary(screen, needs_key=True).show(READY, 1.25)
    assert "Authorization: Bearer KEY" in screen.getvalue()


def test_one_line_anywhere_else(caplog: pytest.LogCaptureFixture) -> None:
    file = io.StringIO()
    with caplog.at_level(logging.INFO):
        summary(file).show(READY, 1.25)
    assert file.getvalue() == ""
    (record,) = caplog.records
    assert record.getMessage() == (
        "serving a/b at http://127.0.0.1:3000 on simulated laptop (sim, float32) after 1.2 s; context 2048 tokens, "
        "KV cache 8192 tokens; the only backend that can run here; --cuda-graphs 1 has no effect: because"
    )
