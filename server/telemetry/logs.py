"""What the server writes to standard error: lines for people, or one JSON object a line for machines.

A line has numbers, names and reasons, never what a client sent or what a model answered.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

Level = Literal["debug", "info", "warning", "error"]

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Of the request that the running task answers; empty outside of one."""

requests_log = logging.getLogger("mainspring.requests")
"""One line a request, and one for each that broke off. Off unless `configure` is told to log requests."""


def event(name: str, level: int = logging.INFO, /, **fields: object) -> None:
    """One line about a request: an event's name and numbers."""
    if requests_log.isEnabledFor(level):
        requests_log.log(level, name, extra={"fields": fields})


def configure(*, level: Level, as_json: bool, requests: bool) -> None:
    """Set the process's logging up. For the process's entry only."""
    handler = logging.StreamHandler()
    handler.setFormatter(JSONLines() if as_json else Text("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("mainspring").setLevel(level.upper())
    requests_log.setLevel(level.upper() if requests else logging.WARNING)


class Text(logging.Formatter):
    """A sentence, and the fields behind it as `name=value`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {"request_id": request_id.get(), **_fields(record)}
        shown = " ".join(f"{name}={value}" for name, value in fields.items() if value not in (None, ""))
        return f"{super().format(record)} {shown}".rstrip()


class JSONLines(logging.Formatter):
    """One object a line: ts, level, logger, event, then what is known."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        line.update(_fields(record))
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = record.__dict__.get("fields", {})
    return fields
