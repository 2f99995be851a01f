"""Whatever SmolLM2 says at temperature 1 under a grammar, and finishes, is valid by a validator of another's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema

from mainspring.core.config import EngineConfig
from mainspring.core.grammar.messages import GrammarSpec
from mainspring.core.request import FinishReason, SamplingParams
from mainspring.server.offline import LLM

SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}}, "required": ["a", "b"]},
    {"enum": ["red", "green", 3, None, True]},
    {"const": {"a": [1, 2]}},
    {"type": "string", "pattern": "^[a-f]{2,5}$"},
    {"type": "string", "minLength": 2, "maxLength": 6},
    {"type": "string", "format": "date"},
    {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": ["x"]}], "items": False, "minItems": 2},
    {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 17}, {"type": "boolean"}]},
    {"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 3},
    {"$defs": {"p": {"enum": ["u", "v"]}}, "type": "array", "items": {"$ref": "#/$defs/p"}, "maxItems": 3},
    {
        "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
        "$ref": "#/$defs/node",
    },
]  # fmt: skip
PATTERNS = ["[0-9]{3}-[0-9]{4}", "(yes|no|maybe)", "[A-Z][a-z]{1,8}", r"\d{4}-\d{2}-\d{2}", "(ab|c){2,4}", "é+x?"]


LONG = "[a-z ]{300}"
"""More than the answers have tokens for."""
PROMPT = "Say something short, and nothing else, and stop when you have said it, please. Answer:" + " now" * 8
"""Nearly a block of the cache."""


def test_finished_answers_are_valid_and_free_ones_are_as_they_were(smollm2: Path) -> None:
    grammars = [GrammarSpec("json_schema", json.dumps(schema)) for schema in SCHEMAS]
    grammars += [GrammarSpec("regex", pattern) for pattern in PATTERNS]
    grammars += [GrammarSpec("choice", '["left", "right"]')]
    grammars += [GrammarSpec("regex", LONG)] * 8
    asked = [
        SamplingParams(max_tokens=48, temperature=1.0, seed=seed, repetition_penalty=1.1)
        for seed in range(len(grammars))
    ]
    free = SamplingParams(max_tokens=8, temperature=1.0, seed=1)
    # Blocks for nine prompts, and eight of the answers need another one each: some are preempted in the middle.
    with LLM.of(EngineConfig(model=str(smollm2), backend="cpu", max_length=256, num_blocks=10)) as llm:
        outputs = llm.generate([PROMPT] * (1 + len(asked)), [free, *asked], grammar=[None, *grammars])
        alone = llm.generate(PROMPT, free)[0]
        preemptions = llm.stats.preemptions
    assert preemptions > 0
    assert outputs[0].token_ids == alone.token_ids
    finished = 0
    for output in outputs[-8:]:
        assert re.fullmatch("[a-z ]*", output.text), output.text
    for output, kind in zip(outputs[1:-8], [*SCHEMAS, *PATTERNS, "left|right"], strict=True):
        if output.finish_reason is not FinishReason.EOS:
            continue
        finished += 1
        if isinstance(kind, dict):
            jsonschema.validate(json.loads(output.text), kind, format_checker=jsonschema.FormatChecker())
        else:
            assert re.fullmatch(kind, output.text), (kind, output.text)
    assert finished >= len(asked) - 8 - 4
