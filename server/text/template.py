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
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mainspring.core.errors import ModelError
from mainspring.server.errors import TemplateError
from mainspring.server.text.tokenizer import SpecialTokens

MAX_PROMPT_CHARACTERS = 8_000_000
"""Output cap: four times the largest body, so that no template can fill the memory."""

Message = Mapping[str, Any]
"""`role`, `content` (a string), and what else the template may look at."""


class ChatTemplate:
    """One model's template, compiled once. Safe to use from several threads."""

    def __init__(self, source: str, special: SpecialTokens) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelError(f"the model's chat template has a syntax error in line {error.lineno}: {error}") from error
        self._tokens = {**(special.others or {}), "bos_token": special.bos, "eos_token": special.eos}

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt. A last message of the assistant is continued instead of answered.

        Raises TemplateError when the template refuses the messages.
        """
        if not messages or messages[-1]["role"] != "assistant":
            return self._render(messages, add_generation_prompt=True)
        # The end of the content is found by a mark that no message can hold.
        mark = secrets.token_hex(16)
        last = {**messages[-1], "content": f"{messages[-1].get('content') or ''}{mark}"}
        text = self._render([*messages[:-1], last], add_generation_prompt=False)
        prompt, found, _ = text.rpartition(mark)
        if not found:
            raise TemplateError("the model's chat template leaves out the last message, so it cannot be continued")
        return prompt

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        pieces, length = [], 0
        try:
            for piece in self._template.generate(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
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


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
