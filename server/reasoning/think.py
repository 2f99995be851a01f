"""Thoughts between two marks, at the beginning of an answer."""

from __future__ import annotations

from typing import ClassVar

from mainspring.server.reasoning.parser import ReasoningParser
from mainspring.server.text.machine import END, Steps


class Think(ReasoningParser):
    """`<think>...</think>`: DeepSeek R1, Qwen 3, QwQ, and most others."""

    start: ClassVar[str] = "<think>"
    end: ClassVar[str] = "</think>"
    markers: ClassVar[frozenset[str]] = frozenset({start, end})
    signs: ClassVar[tuple[tuple[str, ...], ...]] = ((end,),)

    def read(self) -> Steps[None]:
        if (yield from self.take_lead((self.start,))) == END and not self.begun:
            yield from self.copy_until((), self.say)
            return
        thoughts = _Thoughts(self)
        yield from self.copy_until((self.end,), thoughts.add)
        first = yield from self.take_word()
        self.put_back(first)
        yield from self.copy_until((), self.say)

    @classmethod
    def begins(cls, prompt: str) -> bool:
        return prompt.rstrip().endswith(cls.start)


class _Thoughts:
    """White space at both ends of thoughts is the format's, not theirs."""

    def __init__(self, machine: ReasoningParser) -> None:
        self._machine = machine
        self._space = ""
        self._begun = False

    def add(self, text: str) -> None:
        shown = text.strip() if not self._begun else text.rstrip()
        if not shown:
            self._space += text
            return
        self._machine.think(shown if not self._begun else self._space + shown)
        self._space = text[len(text.rstrip()) :]
        self._begun = True


class Magistral(Think):
    """`[THINK]...[/THINK]`: Mistral's."""

    start: ClassVar[str] = "[THINK]"
    end: ClassVar[str] = "[/THINK]"
    markers: ClassVar[frozenset[str]] = frozenset({start, end})
    signs: ClassVar[tuple[tuple[str, ...], ...]] = ((end,),)


class Seed(Think):
    """`<seed:think>...</seed:think>`: Seed-OSS."""

    start: ClassVar[str] = "<seed:think>"
    end: ClassVar[str] = "</seed:think>"
    markers: ClassVar[frozenset[str]] = frozenset({start, end})
    signs: ClassVar[tuple[tuple[str, ...], ...]] = ((end,), (start,))


class Kimi(Think):
    """`◁think▷...◁/think▷`: Kimi's."""

    start: ClassVar[str] = "◁think▷"
    end: ClassVar[str] = "◁/think▷"
    markers: ClassVar[frozenset[str]] = frozenset({start, end})
    signs: ClassVar[tuple[tuple[str, ...], ...]] = ((end,),)


class GemmaThought(Think):
    """`<|channel>thought ...<channel|>`: Gemma 4."""

    start: ClassVar[str] = "<|channel>thought"
    end: ClassVar[str] = "<channel|>"
    markers: ClassVar[frozenset[str]] = frozenset({"<|channel>", end})
    signs: ClassVar[tuple[tuple[str, ...], ...]] = ((end,),)
