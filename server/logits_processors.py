"""What requests say of logits processors, checked against what the engine has: `LogitsProcessing`s of plain numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from mainspring.core.errors import unknown
from mainspring.core.request import LogitsProcessing, Parameter, ProcessorForm
from mainspring.server.errors import UnsupportedError, invalid

_FIELD = "logits_processors"
_WATERMARK = "watermark"


def of_request(named: Any, watermark: bool | None, forms: Sequence[ProcessorForm]) -> tuple[LogitsProcessing, ...]:
    """`logits_processors: [{"name": ..., parameter: number, ...}]` and `watermark: true`. Raises `FieldError`.

    Parameters that are left out have their defaults.
    """
    found = [] if not named else _of_list(named, forms)
    if watermark and not any(each.name == _WATERMARK for each in found):
        form = next((form for form in forms if form.name == _WATERMARK), None)
        if form is None:
            raise UnsupportedError(_WATERMARK)
        found.append(LogitsProcessing(form.name, tuple(parameter.default for parameter in form.parameters)))
    return tuple(found)


def with_defaults(
    forms: Sequence[ProcessorForm], defaults: Mapping[str, Mapping[str, float]]
) -> tuple[ProcessorForm, ...]:
    """The forms with the operator's defaults in place of the processors' own."""
    return tuple(
        msgspec.structs.replace(
            form,
            parameters=tuple(
                msgspec.structs.replace(parameter, default=defaults[form.name][parameter.name])
                if parameter.name in defaults.get(form.name, {})
                else parameter
                for parameter in form.parameters
            ),
        )
        for form in forms
    )


def _of_list(named: Any, forms: Sequence[ProcessorForm]) -> list[LogitsProcessing]:
    if not forms:
        raise UnsupportedError(_FIELD)
    if not isinstance(named, list):
        raise invalid(f"`{_FIELD}` must be a list of objects with a `name`", _FIELD)
    if len(named) > len(forms):
        raise invalid(f"`{_FIELD}` names {len(named)} processors; there are {len(forms)}, each at most once", _FIELD)
    found = [_of_entry(entry, f"{_FIELD}.{place}", forms) for place, entry in enumerate(named)]
    if len({each.name for each in found}) < len(found):
        raise invalid(f"`{_FIELD}` names a processor twice", _FIELD)
    return found


def _of_entry(entry: Any, field: str, forms: Sequence[ProcessorForm]) -> LogitsProcessing:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise invalid(f"`{field}` must be an object with a `name`", field)
    form = next((form for form in forms if form.name == entry["name"]), None)
    if form is None:
        raise invalid(unknown("logits processor", entry["name"][:64], [form.name for form in forms]), f"{field}.name")
    known = [parameter.name for parameter in form.parameters]
    for key in entry:
        if key not in ("name", *known):
            raise invalid(f"`{field}`: {unknown('parameter', str(key)[:64], known)}", field)
    return LogitsProcessing(form.name, tuple(_value(entry, parameter, field) for parameter in form.parameters))


def _value(entry: Mapping[str, Any], parameter: Parameter, field: str) -> float:
    value = entry.get(parameter.name, parameter.default)
    field = f"{field}.{parameter.name}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(f"`{field}` must be a number", field)
    if (problem := parameter.problem(value)) is not None:
        raise invalid(f"`{field}` {problem}", field)
    return float(value)
