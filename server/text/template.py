"""Chat messages to one prompt, by the model's own Jinja template, in a sandbox.

Templates come from the model only, never from a request. Rendering follows transformers' `apply_chat_template`:
`trim_blocks`, `lstrip_blocks`, `raise_exception`, `strftime_now`, `tojson` that leaves non-ASCII and HTML alone.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mainspring.core.errors import ModelError
from mainspring.server.errors import TemplateError
from mainspring.server.text.tokenizer import SpecialTokens

MAX_PROMPT_CHARACTERS = 8_000_000
"""Output cap: four times the largest body, so that no template can fill the memory."""

Message = Mapping[str, Any]
"""`role`, `content` (a string), and what else the template may look at."""


class _Generation(Extension):
    """`{% generation %}`, with which templates mark the assistant's words for training: what is inside, as it is."""

    tags = {"generation"}  # noqa: RUF012  jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """One model's template, compiled once. Safe to use from several threads. Some models have another for tools."""

    def __init__(self, source: str, special: SpecialTokens, tool_source: str | None = None) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._for_tools = None if tool_source is None else ChatTemplate(tool_source, special)
        self.source = source if tool_source is None else f"{source}\n{tool_source}"
        try:
            self._template = environment.from_string(source)
            used = jinja2.meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"the model's chat template has a syntax error in line {error.lineno}: {error}") from error
        self.takes_tools = "tools" in used or self._for_tools is not None
        """Whether it writes tools into the prompt itself."""
        self._tokens = {**(special.others or {}), "bos_token": special.bos, "eos_token": special.eos}

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt. A last message of the assistant is continued instead of answered.

        `tools` are in OpenAI's form, `options` further variables of the template. Raises TemplateError when the
        template refuses the messages, or an option takes the name of something that the server says.
        """
        if tools and self._for_tools is not None:
            return self._for_tools.render(messages, tools, options)
        variables = self._variables(tools, options or {})
        if not messages or messages[-1]["role"] != "assistant" or messages[-1].get("tool_calls"):
            return self._render(messages, variables, add_generation_prompt=True)
        # The end of the content is found by a mark that no message can hold.
        mark = secrets.token_hex(16)
        last = {**messages[-1], "content": f"{messages[-1].get('content') or ''}{mark}"}
        text = self._render([*messages[:-1], last], variables, add_generation_prompt=False)
        prompt, found, _ = text.rpartition(mark)
        if not found:
            raise TemplateError("the model's chat template leaves out the last message, so it cannot be continued")
        return prompt

    def _variables(self, tools: Sequence[Mapping[str, Any]] | None, options: Mapping[str, Any]) -> dict[str, Any]:
        own: dict[str, Any] = {"tools": tools, "documents": None, **self._tokens}
        taken = sorted({"messages", "add_generation_prompt", *own} & set(options))
        if taken:
            raise TemplateError(f"the template's variable `{taken[0]}` is the server's to set; leave it out")
        return {**own, **options}

    def _render(self, messages: Sequence[Message], variables: Mapping[str, Any], *, add_generation_prompt: bool) -> str:
        pieces, length = [], 0
        try:
            for piece in self._template.generate(
                variables, messages=messages, add_generation_prompt=add_generation_prompt
            ):
                length += len(piece)
                if length > MAX_PROMPT_CHARACTERS:
                    raise TemplateError(f"the rendered chat has more than {MAX_PROMPT_CHARACTERS} characters")
                pieces.append(piece)
        except jinja2.UndefinedError as error:
            raise TemplateError(f"a message lacks what the chat template needs: {error.message}") from error
        except jinja2.TemplateError as error:
            raise TemplateError(error.message or "the chat template refused the messages") from error
        except (TypeError, ValueError, KeyError, ArithmeticError) as error:
            raise TemplateError("the chat template cannot handle the form of these messages") from error
        return "".join(pieces)


def _to_json(
    value: Any,
    indent: int | None = None,
    ensure_ascii: bool = False,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
