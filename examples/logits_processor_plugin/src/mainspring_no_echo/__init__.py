"""The plugin: a name for requests, and where its class is. Nothing is imported before an engine wants it."""

from __future__ import annotations

from mainspring.core.plugins import hookimpl


@hookimpl
def mainspring_logits_processors() -> dict[str, str]:
    return {"no_echo": "mainspring_no_echo.processor:NoEcho"}
