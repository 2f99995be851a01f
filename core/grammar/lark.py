"""Structural tags and choices in Lark, as llguidance extends it
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mainspring.core.grammar.protocol import GrammarError

ANY_TEXT = "/(?s:.*)/"


def choice(texts: Sequence[str]) -> str:
    """One of some texts."""
    return "start: " + " | ".join(map(quoted, texts))


def quoted(text: str) -> str:
    """A text as Lark writes one."""
    return json.dumps(text)


class TagGrammar:
    """The rules of one structural tag. Raises `GrammarError` for a part that has no translation."""

    def __init__(self, tag: Mapping[str, Any], whitespace: str) -> None:
        self._rules: list[str] = []
        self._whitespace = whitespace
        start = self._format(tag["format"] if tag.get("type") == "structural_tag" else tag)
        self.text = "\n".join(["%llguidance {}", f"start: {start}", *self._rules])

    def _format(self, part: Mapping[str, Any]) -> str:
        kinds: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
            "const_string": lambda each: quoted(each["value"]),
            "token": lambda each: f"<[{int(each['token'])}]>",
            "any_tokens": lambda each: f"<[^{','.join(str(int(token)) for token in each['exclude_tokens'])}]>*",
            "optional": lambda each: f"({self._format(each['content'])})?",
            "json_schema": lambda each: self._rule(f"%json {json.dumps(self._spaced(each['json_schema']))}"),
            "regex": lambda each: self._terminal(_slashed(each["pattern"])),
            "any_text": lambda each: self._terminal(ANY_TEXT),
            "sequence": lambda each: " ".join(map(self._format, each["elements"])),
            "or": lambda each: self._rule(" | ".join(map(self._format, each["elements"]))),
            "tag": self._tag,
            "tags_with_separator": self._separated,
            "triggered_tags": self._triggered,
            "token_triggered_tags": self._token_triggered,
        }
        kind = str(part.get("type"))
        if kind not in kinds:
            raise GrammarError(f"a structural tag has a part of type {kind!r}; there are {', '.join(kinds)}")
        try:
            return kinds[kind](part)
        except KeyError as error:
            raise GrammarError(f"a structural tag's part of type {kind!r} has no {error}") from error

    def _tag(self, part: Mapping[str, Any]) -> str:
        begin, content, end = part["begin"], part["content"], part["end"]
        if content.get("type") == "any_text" and isinstance(end, str) and end:
            # Up to the first end, which belongs to it.
            rule = self._rule(ANY_TEXT, f"[suffix={quoted(end)}]")
            return f"{self._text(begin)} {rule}" if begin else rule
        return " ".join(piece for piece in (self._text(begin), self._format(content), self._text(end)) if piece)

    def _separated(self, part: Mapping[str, Any]) -> str:
        one = self._rule(" | ".join(self._tag(tag) for tag in part["tags"]))
        if part.get("stop_after_first"):
            return one if part.get("at_least_one") else f"{one}?"
        more = f"{one} ({self._text(part['separator'])} {one})*" if part["separator"] else f"{one}+"
        return self._rule(more) if part.get("at_least_one") else f"({more})?"

    def _triggered(self, part: Mapping[str, Any]) -> str:
        """Words up to a trigger, and then the rest of one of the tags that begin with it, any number of times."""
        calls = []
        for trigger in part["triggers"]:
            tags = [tag for tag in part["tags"] if tag["begin"].startswith(trigger)]
            if not tags:
                raise GrammarError(f"no tag begins with the trigger {trigger!r}")
            rest = self._rule(" | ".join(self._tag({**tag, "begin": tag["begin"][len(trigger) :]}) for tag in tags))
            words = self._rule(ANY_TEXT, f"[suffix={quoted(trigger)}]")
            calls.append(f"{words} {rest}")
        either = self._rule(" | ".join(calls))
        # Words behind the last call hold no trigger: one that came would have to be a call.
        words = self._terminal(f"{ANY_TEXT} & ~/(?s:.*)({'|'.join(map(_escaped, part['triggers']))})(?s:.*)/")
        if part.get("stop_after_first"):
            return f"({either} | {words})" if not part.get("at_least_one") else either
        return f"{either}{'+' if part.get('at_least_one') else '*'} {words}"

    def _token_triggered(self, part: Mapping[str, Any]) -> str:
        """Words, which hold no special token, and tags that begin with one."""
        either = self._rule(" | ".join(self._tag(tag) for tag in part["tags"]))
        words = self._terminal(ANY_TEXT)
        if part.get("stop_after_first"):
            return f"{words} {either}" if part.get("at_least_one") else f"{words} ({either})?"
        return f"({words} {either}){'+' if part.get('at_least_one') else '*'} {words}"

    def _spaced(self, schema: Any) -> Any:
        return (
            {**schema, "x-guidance": {"whitespace_pattern": self._whitespace}} if isinstance(schema, dict) else schema
        )

    def _text(self, text: str | Mapping[str, Any]) -> str:
        """A tag's begin, end or separator: words, or a part of its own."""
        if isinstance(text, str):
            return quoted(text) if text else ""
        return self._format(text)

    def _rule(self, body: str, attributes: str = "") -> str:
        name = f"rule_{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def _terminal(self, body: str) -> str:
        name = f"TEXT_{len(self._rules)}"
        self._rules.append(f"{name}: {body}")
        return name


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", r"\/")


def _slashed(pattern: str) -> str:
    """A regular expression between slashes, those inside it escaped."""
    return "/" + re.sub(r"(\\.)|/", lambda found: found[1] or r"\/", pattern, flags=re.DOTALL) + "/"
