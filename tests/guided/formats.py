"""What the formats of JSON Schema mean, by eyes other than the engines': jsonschema's where it has them, else RFCs'."""

from __future__ import annotations

import re
from datetime import datetime
from urllib.parse import urlsplit

from jsonschema import FormatChecker

_TIME = re.compile(r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_DURATION = re.compile(r"P(?!$)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)")


def checker() -> FormatChecker:
    """All formats that a schema of `schemas.py` names."""
    found = FormatChecker()
    found.checks("time")(_is_time)  # RFC 3339, full-time
    found.checks("date-time")(_is_date_time)
    found.checks("hostname")(_is_hostname)  # RFC 1123
    found.checks("uri")(_is_uri)  # RFC 3986
    found.checks("duration")(lambda value: not isinstance(value, str) or bool(_DURATION.fullmatch(value)))
    return found


def _is_time(value: object) -> bool:
    return not isinstance(value, str) or bool(_TIME.fullmatch(value))


def _is_date_time(value: object) -> bool:
    if not isinstance(value, str):
        return True
    day, separator, time = value[:10], value[10:11], value[11:]
    try:
        datetime.strptime(day, "%Y-%m-%d")
    except ValueError:
        return False
    return separator in ("T", "t", " ") and _is_time(time)


def _is_hostname(value: object) -> bool:
    return not isinstance(value, str) or all(map(_LABEL.fullmatch, value.split(".")))


def _is_uri(value: object) -> bool:
    if not isinstance(value, str):
        return True
    try:
        return bool(urlsplit(value).scheme) and not re.search(r"[\s<>\"{}|\\^`]", value)
    except ValueError:
        return False
