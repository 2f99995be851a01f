"""What a request says of beams, in vLLM's words, checked: `use_beam_search`, `beam_width`, `length_penalty`, ..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mainspring.server.beams.search import Beams
from mainspring.server.errors import invalid

MAX_WIDTH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamFields:
    """The fields of a request that matter here. None: the client did not say."""

    use_beam_search: bool | None
    beam_width: int | None
    best_of: int | None
    n: int | None
    length_penalty: float | None
    early_stopping: bool | Literal["never"] | None
    temperature: float | None
    drawing: tuple[str, ...]
    """Fields that are set and shape what is drawn at random."""
    stream: bool


def beams_of(asked: BeamFields) -> Beams | None:
    """None where no beams are asked for. Raises `FieldError` for what makes no sense beside them, or without."""
    if not asked.use_beam_search:
        for name in ("beam_width", "length_penalty", "early_stopping"):
            if getattr(asked, name) is not None:
                raise invalid(f"`{name}` needs `use_beam_search: true`", name)
        return None
    if asked.stream:
        raise invalid("beam search cannot be streamed: which answer is best is known at the end", "stream")
    if asked.temperature:
        raise invalid(f"beam search draws nothing; `temperature` is {asked.temperature:g} and must be 0", "temperature")
    for name in asked.drawing:
        raise invalid(f"beam search draws nothing; leave out `{name}`", name)
    return Beams(_width(asked), 1.0 if asked.length_penalty is None else asked.length_penalty, _stopping(asked))


def _stopping(asked: BeamFields) -> bool | Literal["never"]:
    return False if asked.early_stopping is None else asked.early_stopping


def _width(asked: BeamFields) -> int:
    """`beam_width`, or else as vLLM's older API had it `best_of`, or the number of answers."""
    given = [(name, value) for name in ("beam_width", "best_of", "n") if (value := getattr(asked, name)) is not None]
    name, width = given[0] if given else ("beam_width", 1)
    if not 2 <= width <= MAX_WIDTH:
        raise invalid(f"`{name}` is {width}; beam search needs at least 2 beams and has at most {MAX_WIDTH}", name)
    if width < (asked.n or 1):
        raise invalid(f"`{name}` is {width}, less than the {asked.n} answers of `n`", name)
    return width
