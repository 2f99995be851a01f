"""Server-sent events from bytes that come in any pieces (WHATWG HTML, section 9.2.6), data alone."""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventReader:
    """Collects bytes and gives back the data of each event that they complete."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, received: bytes) -> list[bytes]:
        """The data of the events that end in `received`. Comments and other fields are left out."""
        text = self._rest + received
        # A carriage return at the end may be the first half of a line break.
        held = text[-1:] if text.endswith(b"\r") else b""
        *lines, last = _LINE_END.split(text[: len(text) - len(held)])
        self._rest = last + held
        events = []
        for line in lines:
            if not line and self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        return events
