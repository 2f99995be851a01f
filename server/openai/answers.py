"""What a model wrote to the parts of OpenAI's messages: content, reasoning, calls; whole and streamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET

from mainspring.core.request import FinishReason
from mainspring.server.model import ServedModel
from mainspring.server.openai.types import (
    AssistantMessage,
    ChatDelta,
    FinishWord,
    FunctionCall,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
)
from mainspring.server.text.answer import AnswerReader
from mainspring.server.text.machine import Arguments, CallStart, Event, Reasoning, Text
from mainspring.server.text.machine import TextMachine as Machine
from mainspring.server.tools.special_tokens import by_token
from mainspring.server.tools.structure import forced_format, required_calls, strict_calls
from mainspring.server.tools.tool import Offer

FINISH_WORDS: dict[FinishReason, FinishWord] = {
    FinishReason.EOS: "stop",
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
}


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How to read the answers to a request."""

    machines: Callable[[], Sequence[Machine]] = tuple
    """New ones for a sequence, in the order in which the text goes through them; none where all of it is content."""
    parallel: bool = True
    new_id: Callable[[], str] = str
    """An id for a call."""

    def reader(self) -> AnswerReader:
        """For one sequence."""
        return AnswerReader(self.machines(), parallel=self.parallel)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a request's answers are read with."""

    form: AnswerForm
    markers: frozenset[str]
    """Special tokens that the machines must see."""
    structure: dict[str, Any] | None
    """What the answer must be; None: anything."""


def reading_of(model: ServedModel, offer: Offer, prompt: str) -> Reading:
    """The model's own formats, as far as this request and its prompt have a use for them."""
    tool_format = forced_format(model.tool_format, offer) if offer.required else model.tool_format
    reasoning = None if model.tool_format.reads_reasoning else model.reasoning_format
    begun = reasoning is not None and reasoning.begins(prompt)
    reads_calls = bool(offer.tools) or tool_format.reads_reasoning

    def machines() -> list[Machine]:
        found: list[Machine] = [] if reasoning is None else [reasoning(begun)]
        return [*found, tool_format(offer.tools)] if reads_calls else found

    markers = tool_format.markers if reads_calls else frozenset[str]()
    markers |= frozenset() if reasoning is None else reasoning.markers
    constrain = required_calls if offer.required else strict_calls
    structure = constrain(tool_format, offer, reasoning.end if reasoning is not None and begun else "")
    if structure is not None:
        structure = {**structure, "format": by_token(structure["format"], model.tokenizer.special_ids(markers))}
    return Reading(AnswerForm(machines, offer.parallel, tool_format.new_id), markers, structure)


class MessageStream:
    """One sequence's message, delta by delta."""

    def __init__(self, form: AnswerForm) -> None:
        self._reader = form.reader()
        self._new_id = form.new_id
        self._num_calls = 0

    def push(self, text: str, *, ended: bool) -> ChatDelta:
        """What new text adds to the message; it may be nothing."""
        events = self._reader.push(text)
        if ended:
            events += self._reader.finish()
        content = "".join(event.text for event in events if isinstance(event, Text))
        reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
        calls = self._calls(events)
        return ChatDelta(UNSET, content or UNSET, reasoning or UNSET, calls or UNSET)

    def finish_word(self, reason: FinishReason) -> FinishWord:
        """Calls are a reason of their own, unless the last of them was cut short."""
        word = FINISH_WORDS[reason]
        return "tool_calls" if word == "stop" and self._num_calls else word

    def _calls(self, events: Sequence[Event]) -> list[ToolCallDelta]:
        deltas: list[ToolCallDelta] = []
        for event in events:
            if isinstance(event, CallStart):
                start = FunctionDelta("", event.name)
                deltas.append(ToolCallDelta(self._num_calls, start, self._new_id(), "function"))
                self._num_calls += 1
            elif isinstance(event, Arguments):
                index = self._num_calls - 1
                if deltas and deltas[-1].index == index:
                    last = deltas.pop()
                    function = FunctionDelta(last.function.arguments + event.text, last.function.name)
                    deltas.append(ToolCallDelta(index, function, last.id, last.type))
                else:
                    deltas.append(ToolCallDelta(index, FunctionDelta(event.text)))
        return deltas


def whole_message(form: AnswerForm, text: str, reason: FinishReason) -> tuple[AssistantMessage, FinishWord]:
    """A sequence's message, and the word for its end."""
    stream = MessageStream(form)
    delta = stream.push(text, ended=True)
    calls = [
        ToolCall(call.id, FunctionCall(call.function.name, call.function.arguments))
        for call in delta.tool_calls or ()
        if call.id and call.function.name
    ]
    content = delta.content or (None if calls else "")
    message = AssistantMessage(content, "assistant", delta.reasoning_content, calls or UNSET)
    return message, stream.finish_word(reason)
