"""Schemas of the kinds that the JSON Schema Test Suite has (https://json-schema.org, 2020-12), by what they are about.

None is its: theirs try validators, where an instance is given. These try what a model is led to write.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Schema = Any


def obj(required: bool = True, closed: bool = True, **properties: Schema) -> dict[str, Any]:
    """An object with these properties."""
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(properties)
    if closed:
        schema["additionalProperties"] = False
    return schema


def array(items: Schema, least: int = 1, most: int = 3, **more: Any) -> dict[str, Any]:
    """A list."""
    return {"type": "array", "items": items, "minItems": least, "maxItems": most, **more}


def integer(**bounds: Any) -> dict[str, Any]:
    """A whole number."""
    return {"type": "integer", **bounds}


def number(**bounds: Any) -> dict[str, Any]:
    """Any number."""
    return {"type": "number", **bounds}


def text(**bounds: Any) -> dict[str, Any]:
    """A string."""
    return {"type": "string", **bounds}


BOOL, NULL, INT, NUM = {"type": "boolean"}, {"type": "null"}, integer(), number()
SHORT = text(maxLength=12)
COLOUR = {"enum": ["red", "green", "blue"]}

TYPES = [
    BOOL, NULL, integer(minimum=-999, maximum=999), number(minimum=-10, maximum=10), SHORT, array(BOOL), obj(a=BOOL),
    {"type": ["boolean", "null"]}, {"type": ["integer", "boolean"], "minimum": 0, "maximum": 99},
    {"type": ["string", "null"], "maxLength": 5}, obj(a={"type": ["null", "boolean"]}), array({"type": ["null"]}),
    obj(a=True, required=True), obj(a={}), array(True, 1, 2),
]  # fmt: skip
ENUMS = [
    COLOUR, {"enum": [1, 2, 3]}, {"enum": [True, None]}, {"enum": ["a", 1, None, [], {}]}, {"enum": [[1, 2], [3]]},
    {"enum": [{"a": 1}, {"b": [True]}]}, {"enum": ["é", "日本", "😀"]}, {"enum": ['quote"', "back\\slash", "new\nline"]},
    {"enum": ["", " "]}, {"enum": [f"value {n}" for n in range(200)]}, {"enum": [n * n for n in range(100)]},
    {"enum": ["only"]}, {"type": "string", "enum": ["x", "y"]}, {"type": "integer", "enum": [0, -1]},
    {"const": "fixed"}, {"const": 17}, {"const": None}, {"const": [1, "a", None]}, {"const": {"a": {"b": [1]}}},
    obj(kind={"const": "circle"}, radius=integer(minimum=1, maximum=9)), {"enum": [1.5, -0.25, 3e2]}, {"const": False},
    array(COLOUR, 3, 3), obj(a=COLOUR, b=COLOUR), {"enum": ["prefix", "prefixed", "pre"]},
]  # fmt: skip
NUMBERS = [
    integer(minimum=0, maximum=9), integer(minimum=5, maximum=17), integer(minimum=-20, maximum=-7),
    integer(minimum=-3, maximum=3), integer(exclusiveMinimum=-3, exclusiveMaximum=3), integer(minimum=95, maximum=105),
    integer(minimum=1000, maximum=9999), integer(minimum=7, maximum=7), integer(exclusiveMinimum=0, maximum=1),
    integer(minimum=0, maximum=255), integer(minimum=1900, maximum=2100), integer(minimum=-1000000, maximum=1000000),
    number(minimum=0, maximum=1), number(minimum=-1.5, maximum=2.25), number(exclusiveMinimum=0, exclusiveMaximum=1),
    number(minimum=99.5, maximum=100.5), number(minimum=-0.001, maximum=0.001), number(minimum=3, maximum=3.5),
    obj(x=number(minimum=-90, maximum=90), y=number(minimum=-180, maximum=180)),
    array(integer(minimum=1, maximum=6), 5, 5), integer(minimum=10), integer(maximum=-10), number(exclusiveMinimum=100),
    integer(minimum=0, exclusiveMaximum=60), {"type": ["integer", "null"], "minimum": 3, "maximum": 4},
    integer(multipleOf=5, minimum=0, maximum=100), number(multipleOf=0.5, minimum=0, maximum=2),
]  # fmt: skip
STRINGS = [
    text(minLength=2, maxLength=6), text(maxLength=0), text(minLength=5, maxLength=5), text(minLength=20, maxLength=30),
    text(maxLength=1), text(pattern="^[a-f]{2,5}$"), text(pattern="^[0-9]{3}-[0-9]{4}$"), text(pattern="^(yes|no)$"),
    text(pattern=r"^\d{4}-\d{2}$"), text(pattern="^[A-Z][a-z]{1,8}$"), text(pattern="^a*b$"), text(pattern="^(ab|c)+d$"),
    text(pattern=r"^\w+@\w+\.com$"), text(pattern="^#[0-9a-fA-F]{6}$"), text(pattern="^[^0-9]{3}$"), text(pattern=r"^\S{1,6}$"),
    text(pattern="^é{1,3}$"), text(pattern=r"^\$[0-9]+\.[0-9]{2}$"), text(pattern="^(a|b(c|d(e|f)))$"), text(pattern="^x?y?z?$"),
    text(pattern=r'^"[a-z]{2}"$'), text(pattern=r"^\\[a-z]$"), text(pattern="^[a-z]{2}(-[A-Z]{2})?$"),
    obj(code=text(pattern="^[A-Z]{3}$"), zip=text(pattern="^[0-9]{5}$")), array(text(pattern="^[01]{4}$"), 2, 2),
    text(pattern="^(GET|PUT|POST) /[a-z]{1,8}$"), text(pattern="^v[0-9]+(\\.[0-9]+){2}$"),
]  # fmt: skip
FORMATS = [
    text(format=name)
    for name in ("date", "time", "date-time", "email", "uuid", "ipv4", "ipv6", "hostname", "uri", "duration")
] + [obj(at=text(format="date-time"), by=text(format="email")), array(text(format="ipv4"), 2, 2)]
ARRAYS = [
    array(INT | {"minimum": 0, "maximum": 9}, 2, 4), array(BOOL, 0, 0), array(BOOL, 4, 4), array(NULL, 3, 3),
    array(array(integer(minimum=0, maximum=1), 2, 2), 2, 2), array(array(array(BOOL, 1, 1), 1, 1), 1, 1),
    {"type": "array", "prefixItems": [BOOL, {"enum": ["x"]}], "items": False, "minItems": 2},
    {"type": "array", "prefixItems": [integer(minimum=0, maximum=9), COLOUR, NULL], "minItems": 3, "items": False},
    {"type": "array", "prefixItems": [BOOL], "items": COLOUR, "minItems": 2, "maxItems": 4},
    array(obj(a=BOOL)), array(SHORT), array({"enum": [1, "a", None]}, 2, 5), array({"anyOf": [BOOL, NULL]}, 2, 3),
    {"type": "array", "items": False}, array(COLOUR, 0, 2), array(COLOUR, 6, 8), {"type": "array", "maxItems": 0},
    array(COLOUR, 2, 3, uniqueItems=True), array(BOOL, 1, 3, contains={"const": True}),
]  # fmt: skip
OBJECTS = [
    obj(), obj(a=BOOL, b=NULL), obj(a=BOOL, b=INT, required=False), obj(False, True, a=COLOUR), obj(True, False, a=BOOL),
    obj(a=obj(b=obj(c=obj(d=BOOL)))), obj(name=SHORT, age=integer(minimum=0, maximum=120), alive=BOOL),
    {"type": "object", "properties": {"a": BOOL, "b": BOOL}, "required": ["b"], "additionalProperties": False},
    {"type": "object", "additionalProperties": {"enum": [1, 2]}, "maxProperties": 2},
    {"type": "object", "additionalProperties": BOOL, "minProperties": 1, "maxProperties": 1},
    {"type": "object", "patternProperties": {"^[a-c]{2}$": BOOL}, "additionalProperties": False, "maxProperties": 2},
    obj(**{"with space": BOOL, 'with"quote': NULL, "ключ": INT | {"minimum": 0, "maximum": 5}}),
    obj(a=array(obj(b=COLOUR), 2, 2)), obj(**{f"p{n}": BOOL for n in range(15)}), obj(a=obj(), b=array(NULL, 0, 1)),
    obj(id=text(format="uuid"), tags=array(COLOUR, 0, 3), meta=obj(ok=BOOL)),
    {"type": "object", "required": ["x", "y"], "properties": {"x": COLOUR}, "additionalProperties": BOOL},
    {"type": "object", "properties": {"a": False, "b": BOOL}, "required": ["b"], "additionalProperties": False},
    {"type": "object", "propertyNames": {"pattern": "^[xyz]$"}, "additionalProperties": BOOL},
    {"type": "object", "properties": {"a": BOOL, "b": BOOL}, "dependentRequired": {"a": ["b"]}},
]  # fmt: skip
CHOICES = [
    {"anyOf": [integer(minimum=5, maximum=17), BOOL]}, {"anyOf": [NULL, COLOUR, array(BOOL, 1, 1)]},
    {"anyOf": [obj(a=BOOL), obj(b=NULL)]}, {"oneOf": [BOOL, NULL]}, {"oneOf": [{"const": "a"}, {"const": 1}]},
    {"oneOf": [obj(kind={"const": "cat"}, lives=integer(minimum=1, maximum=9)), obj(kind={"const": "dog"}, good=BOOL)]},
    {"allOf": [integer(minimum=3), {"maximum": 8}]}, {"allOf": [obj(False, False, a=BOOL), {"required": ["a"]}]},
    {"allOf": [{"type": "string"}, {"minLength": 2}, {"maxLength": 3}]}, {"anyOf": [{"type": "string", "maxLength": 3}, NULL]},
    obj(a={"anyOf": [BOOL, COLOUR]}), array({"oneOf": [COLOUR, {"const": 0}]}), {"anyOf": [{"enum": [1]}, {"enum": [2]}]},
    {"type": "string", "anyOf": [{"pattern": "^a+$"}, {"pattern": "^b+$"}]}, {"allOf": [COLOUR, {"enum": ["red", "pink"]}]},
    {"anyOf": [{"anyOf": [BOOL, NULL]}, {"anyOf": [{"const": 3}]}]}, {"oneOf": [integer(maximum=3), integer(minimum=2)]},
    {"not": {"type": "string"}}, {"if": {"const": 1}, "then": {"const": 1}, "else": {"const": 2}},
    {"type": "integer", "allOf": [{"minimum": 0}, {"maximum": 50}, {"minimum": 40}]},
]  # fmt: skip


def with_definitions(definitions: Mapping[str, Schema], schema: Mapping[str, Any]) -> Schema:
    """A schema that refers to others."""
    return {"$defs": dict(definitions), **schema}


NODE = obj(value=integer(minimum=0, maximum=9), next={"anyOf": [{"$ref": "#/$defs/node"}, NULL]})
TREE = obj(leaf=COLOUR, children=array({"$ref": "#/$defs/tree"}, 0, 2))
REFERENCES = [
    with_definitions({"p": {"enum": ["u", "v"]}}, array({"$ref": "#/$defs/p"})),
    with_definitions({"p": COLOUR}, obj(a={"$ref": "#/$defs/p"}, b={"$ref": "#/$defs/p"})),
    with_definitions({"node": NODE}, {"$ref": "#/$defs/node"}), with_definitions({"tree": TREE}, {"$ref": "#/$defs/tree"}),
    with_definitions({"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": BOOL}, {"$ref": "#/$defs/a"}),
    with_definitions({"even": array({"$ref": "#/$defs/odd"}, 0, 1), "odd": array({"$ref": "#/$defs/even"}, 1, 1)}, {"$ref": "#/$defs/even"}),
    {"definitions": {"old": NULL}, "type": "array", "items": {"$ref": "#/definitions/old"}, "minItems": 1, "maxItems": 2},
    obj(a=BOOL, b={"$ref": "#/properties/a"}), with_definitions({"x/y": BOOL}, {"$ref": "#/$defs/x~1y"}),
    with_definitions({"x": integer(minimum=0)}, {"allOf": [{"$ref": "#/$defs/x"}, {"maximum": 20}]}),
    with_definitions({"x": {"type": "string"}}, {"$ref": "#/$defs/x", "maxLength": 4}),
    {"type": "object", "properties": {"up": {"anyOf": [{"$ref": "#"}, NULL]}}, "required": ["up"], "additionalProperties": False},
    with_definitions(
        {"expression": {"anyOf": [integer(minimum=0, maximum=9), obj(op={"enum": ["+", "*"]}, left={"$ref": "#/$defs/expression"}, right={"$ref": "#/$defs/expression"})]}},
        {"$ref": "#/$defs/expression"},
    ),
    with_definitions({"unused": {"type": "string"}}, BOOL), with_definitions({"s": {"$anchor": "here", **COLOUR}}, {"$ref": "#here"}),
]  # fmt: skip
NESTED = [
    obj(user=obj(name=SHORT, mail=text(format="email")), orders=array(obj(sku=text(pattern="^[A-Z]{2}[0-9]{3}$"), count=integer(minimum=1, maximum=9)))),
    obj(type={"const": "point"}, at=array(number(minimum=0, maximum=1), 2, 2)),
    obj(city=COLOUR, weather=obj(warm=BOOL, degrees=integer(minimum=-30, maximum=45)), notes=array(SHORT, 0, 2)),
    array(obj(question=text(maxLength=40), answer={"enum": ["A", "B", "C", "D"]}), 1, 2),
    obj(steps=array(obj(number=integer(minimum=1, maximum=5), text=text(maxLength=30)), 1, 3)),
    obj(a={"anyOf": [obj(b=array(NULL, 0, 2)), array(obj(c=BOOL), 1, 1)]}), obj(matrix=array(array(integer(minimum=0, maximum=9), 3, 3), 2, 2)),
    obj(title=text(minLength=1, maxLength=20), year=integer(minimum=1900, maximum=2030), rating={"enum": [1, 2, 3, 4, 5]}),
    obj(function={"const": "search"}, arguments=obj(query=text(maxLength=20), limit=integer(minimum=1, maximum=10))),
    obj(red=integer(minimum=0, maximum=255), green=integer(minimum=0, maximum=255), blue=integer(minimum=0, maximum=255)),
    {"title": "Person", "description": "Somebody", "$schema": "https://json-schema.org/draft/2020-12/schema", **obj(name=SHORT)},
    {"default": {"a": True}, "examples": [{"a": False}], **obj(a=BOOL | {"description": "whether"})},
    obj(deep=array(obj(deeper=array(obj(deepest={"anyOf": [COLOUR, NULL]}), 1, 2)), 1, 1)),
    obj(date=text(format="date"), time=text(format="time"), where=obj(host=text(format="hostname"), ip=text(format="ipv4"))),
    obj(items=array({"anyOf": [obj(t={"const": "a"}, v=BOOL), obj(t={"const": "b"}, v=integer(minimum=0, maximum=3))]}, 2, 3)),
    obj(left=obj(left=obj(left=NULL, right=BOOL), right=COLOUR), right=array(BOOL, 2, 2)),
    array({"type": "array", "prefixItems": [text(maxLength=6), integer(minimum=0, maximum=99)], "items": False, "minItems": 2}, 2, 3),
    obj(status={"enum": ["open", "closed"]}, priority=integer(minimum=1, maximum=3), labels=array(text(pattern="^[a-z-]{2,8}$"), 0, 3)),
    obj(nothing=NULL, empty=obj(), none=array(NULL, 0, 0)), obj(pi=number(minimum=3, maximum=4), e=number(minimum=2, maximum=3)),
]  # fmt: skip

KINDS: Mapping[str, list[Schema]] = {
    "types": TYPES, "enum and const": ENUMS, "bounds of numbers": NUMBERS, "strings and patterns": STRINGS,
    "formats": FORMATS, "arrays": ARRAYS, "objects": OBJECTS, "anyOf, oneOf, allOf": CHOICES,
    "$ref and recursion": REFERENCES, "nested": NESTED,
}  # fmt: skip
