"""Text read one character at a time, while it is generated: what parsers of tool calls and of reasoning are made of.

A machine is written as if the whole text were there: a generator that takes a character, or asks for text up to a
marker, and waits inside itself until there is more. Since it never sees how the text was cut, a streamed answer and a
whole one cannot differ. Machines do no I/O, know no protocol, and hold back only what may still become a marker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

END = ""
"""What `take` gives once the text is over, again and again."""

T = TypeVar("T")
Steps = Generator[None, str, T]
"""A piece of reading: waits for characters, returns what it found."""


@dataclass(frozen=True, slots=True)
class Text:
    """Words for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The model's thoughts before its answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call of a tool begins; the calls of an answer are numbered by these."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the last call's arguments, as JSON text."""

    text: str


Event = Text | Reasoning | CallStart | Arguments


@dataclass(frozen=True, slots=True)
class _Copying:
    starts: str
    """What the markers begin with."""
    emit: Callable[[str], None]


class TextMachine(ABC):
    """Characters in, events out. A subclass writes `read`, and calls what else is here from there."""

    markers: ClassVar[frozenset[str]] = frozenset()
    """Special tokens that `read` must see; all others have no text."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._ahead: list[str] = []
        """Characters that were put back, the next one last."""
        self._tape: list[str] | None = None
        self._space = ""
        """White space that was said and not shown: a call may follow, before which it goes."""
        self._called = False
        self._ended = False
        self._steps: Steps[None] | None = None
        self._copying: _Copying | None = None
        """While `read` waits in `copy_until` with nothing held."""

    @abstractmethod
    def read(self) -> Steps[None]:
        """Reads the whole text. What is left where it returns early is shown as it is."""

    # For its owner

    def push(self, text: str) -> list[Event]:
        """What new text makes certain."""
        steps = self._running()
        position = 0
        while position < len(text):
            if steps is None:
                self.say(text[position:])
                break
            end = self._plain_end(text, position)
            if end > position and self._copying is not None:
                self._copying.emit(text[position:end])
            else:
                end = position + 1
                steps = self._advance(steps, text[position])
            position = end
        return self._drain()

    def finish(self) -> list[Event]:
        """What was held back, now that the text is over."""
        steps = self._running()
        self._ended = True
        if steps is not None:
            steps = self._advance(steps, END)
        if steps is not None:
            raise RuntimeError(f"{type(self).__name__} waits for more text after its end")
        if self._space and not self._called:
            self._add_text(self._space)
        return self._drain()

    # For `read`

    def take(self) -> Steps[str]:
        """The next character, or `END`."""
        character = self._ahead.pop() if self._ahead else END if self._ended else (yield)
        if self._tape is not None and character:
            self._tape.append(character)
        return character

    def put_back(self, text: str) -> None:
        """Take this again. It is what was taken last, and no more than what is recorded."""
        self._ahead.extend(reversed(text))
        if self._tape is not None and text:
            del self._tape[-len(text) :]

    def record(self, taken: str = "") -> None:
        """Keep `taken` and what is taken from now on, in case that it turns out to mean nothing."""
        self._tape = list(taken)

    def recorded(self) -> str:
        """What was taken since `record`; ends the recording."""
        taken, self._tape = "".join(self._tape or ()), None
        return taken

    def take_word(self) -> Steps[str]:
        """The next character that is no white space, or `END`."""
        while (character := (yield from self.take())).isspace():
            pass
        return character

    def take_lead(self, words: Sequence[str]) -> Steps[str]:
        """The one of `words` that comes next, behind white space at most; else nothing is taken and `END` returned."""
        space, held = "", ""
        while True:
            character = yield from self.take()
            if not held and character.isspace():
                space += character
                continue
            held += character
            possible = [word for word in words if word.startswith(held)]
            if character and possible == [held]:
                return held
            if character and possible:
                continue
            # The longest that was whole on the way; what is behind it was not meant.
            found = max((word for word in words if held.startswith(word)), key=len, default=END)
            self.put_back(held[len(found) :] if found else space + held)
            return found

    def copy_until(self, markers: Sequence[str], emit: Callable[[str], None]) -> Steps[str]:
        """Gives text to `emit` up to the first of the markers, which is returned; `END` where none comes."""
        held = ""
        copying = _Copying("".join({marker[0] for marker in markers}), emit)
        while True:
            self._copying = None if held else copying
            character = yield from self.take()
            self._copying = None
            if character == END:
                if held:
                    emit(held)
                return END
            held += character
            while held and not any(marker.startswith(held) for marker in markers):
                emit(held[0])
                held = held[1:]
            if held in markers:
                return held

    def take_until(self, markers: Sequence[str]) -> Steps[tuple[str, str]]:
        """The text up to the first of the markers, and that marker."""
        taken: list[str] = []
        marker = yield from self.copy_until(markers, taken.append)
        return "".join(taken), marker

    def say(self, text: str) -> None:
        """Words for the reader."""
        shown = text.rstrip()
        if not shown:
            self._space += text
            return
        self._add_text(self._space + shown)
        self._space = text[len(shown) :]

    def think(self, text: str) -> None:
        """The model's thoughts."""
        last = self._events[-1] if self._events else None
        if isinstance(last, Reasoning):
            self._events[-1] = Reasoning(last.text + text)
        elif text:
            self._events.append(Reasoning(text))

    def call(self, name: str) -> None:
        """A call begins."""
        self._space = ""
        self._called = True
        self._events.append(CallStart(name))

    def argue(self, text: str) -> None:
        """More of its arguments."""
        last = self._events[-1] if self._events else None
        if isinstance(last, Arguments):
            self._events[-1] = Arguments(last.text + text)
        elif text:
            self._events.append(Arguments(text))

    def _plain_end(self, text: str, position: int) -> int:
        """How far text is only copied, which may be done at once: taken one by one it would end the same."""
        if self._copying is None or self._tape is not None:
            return position
        found = [place for start in self._copying.starts if (place := text.find(start, position)) >= 0]
        return min(found, default=len(text))

    def _add_text(self, text: str) -> None:
        last = self._events[-1] if self._events else None
        if isinstance(last, Text):
            self._events[-1] = Text(last.text + text)
        else:
            self._events.append(Text(text))

    def _running(self) -> Steps[None] | None:
        if self._steps is None and not self._ended:
            self._steps = self._whole()
            next(self._steps)
        return self._steps

    def _whole(self) -> Steps[None]:
        yield from self.read()
        yield from self.copy_until((), self.say)

    def _advance(self, steps: Steps[None], character: str) -> Steps[None] | None:
        try:
            steps.send(character)
        except StopIteration:
            return None
        return steps

    def _drain(self) -> list[Event]:
        events, self._events = self._events, []
        return events


def joined(events: Sequence[Event]) -> list[Event]:
    """The same events with neighbours of a kind in one."""
    found: list[Event] = []
    for event in events:
        last = found[-1] if found else None
        match last, event:
            case (Text(before), Text(text)):
                found[-1] = Text(before + text)
            case (Reasoning(before), Reasoning(text)):
                found[-1] = Reasoning(before + text)
            case (Arguments(before), Arguments(text)):
                found[-1] = Arguments(before + text)
            case _:
                found.append(event)
    return found
