"""The ways in which requests say what their answers must be, as `GrammarSpec`s: TGI's, OpenAI's and vLLM's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mainspring.core.grammar.messages import GrammarSpec
from mainspring.server.errors import invalid

_ANY_OBJECT = '{"type": "object"}'
_MOST_CHOICES = 10_000


def of_tgi(grammar: Any, field: str = "grammar") -> GrammarSpec | None:
    """TGI's `grammar`: `{"type": "json" | "regex" | "json_schema", "value": ...}`. Raises `FieldError`."""
    if grammar is None:
        return None
    if not isinstance(grammar, Mapping) or "value" not in grammar:
        raise invalid(f"`{field}` must be an object with `type` and `value`", field)
    kind, value = grammar.get("type"), grammar["value"]
    if kind == "regex":
        return _regex(value, f"{field}.value")
    if kind == "json_schema" and isinstance(value, Mapping) and "schema" in value:
        value = value["schema"]
    if kind in ("json", "json_schema", "json_object"):
        return _schema(value, f"{field}.value")
    raise invalid(f"`{field}.type` must be json, json_schema or regex. Given: {kind!r}", f"{field}.type")


def of_response_format(wanted: Any) -> GrammarSpec | None:
    """OpenAI's `response_format`, with TGI's `value` and vLLM's `structural_tag` understood. Raises `FieldError`."""
    if wanted is None:
        return None
    field = "response_format"
    if not isinstance(wanted, Mapping):
        raise invalid(f"`{field}` must be an object", field)
    match wanted.get("type"):
        case "text":
            return None
        case "json_object" if "value" not in wanted:
            return GrammarSpec("json_schema", _ANY_OBJECT)
        case "json_schema" if "value" not in wanted:
            inner = wanted.get("json_schema")
            if not isinstance(inner, Mapping) or "schema" not in inner:
                raise invalid(f"`{field}.json_schema.schema` is missing", f"{field}.json_schema.schema")
            return _schema(inner["schema"], f"{field}.json_schema.schema")
        case "structural_tag":
            return GrammarSpec("structural_tag", json.dumps(wanted))
        case "json" | "regex" | "json_schema" | "json_object":
            return of_tgi(wanted, field)
    given = wanted.get("type")
    raise invalid(f"`{field}.type` must be text, json_object or json_schema. Given: {given!r}", f"{field}.type")


def of_vllm(fields: Mapping[str, Any]) -> GrammarSpec | None:
    """vLLM's `guided_*` fields and `structured_outputs`, of which at most one is set. Raises `FieldError`."""
    given = {name: value for name, value in fields.items() if value is not None}
    if (nested := given.pop("structured_outputs", None)) is not None:
        if not isinstance(nested, Mapping):
            raise invalid("`structured_outputs` must be an object", "structured_outputs")
        names = {"json": "guided_json", "regex": "guided_regex", "choice": "guided_choice", "grammar": "guided_grammar"}
        given |= {names.get(str(name), str(name)): value for name, value in nested.items() if value is not None}
    if not given:
        return None
    if len(given) > 1:
        raise invalid(f"an answer follows one grammar; give one of {', '.join(sorted(given))}", min(given))
    ((name, value),) = given.items()
    match name:
        case "guided_json":
            return _schema(value, name)
        case "guided_regex":
            return _regex(value, name)
        case "guided_choice":
            if not _is_choice(value):
                raise invalid(f"`{name}` must be a list of up to {_MOST_CHOICES} texts", name)
            return GrammarSpec("choice", json.dumps(value))
        case "guided_grammar" if isinstance(value, str):
            return GrammarSpec("ebnf" if "::=" in value else "lark", value)
        case "structural_tag":
            return GrammarSpec("structural_tag", value if isinstance(value, str) else json.dumps(value))
    raise invalid(f"`{name}` is no grammar that this server knows", name)


def _schema(value: Any, field: str) -> GrammarSpec:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise invalid(f"`{field}` is no JSON: {error}", field) from error
    if value is True:
        value = {}
    if not isinstance(value, Mapping):
        raise invalid(f"`{field}` must be a JSON schema", field)
    return GrammarSpec("json_schema", json.dumps(value))


def _regex(value: Any, field: str) -> GrammarSpec:
    if not isinstance(value, str) or not value:
        raise invalid(f"`{field}` must be a regular expression", field)
    return GrammarSpec("regex", value)


def _is_choice(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 0 < len(value) <= _MOST_CHOICES
        and all(isinstance(each, str) and each for each in value)
    )
