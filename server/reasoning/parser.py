"""The contract of a reasoning format. A plugin's is a subclass, named by the hook `mainspring_reasoning_parsers`."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from mainspring.server.text.machine import Steps, TextMachine


class ReasoningParser(TextMachine):
    """One answer's text to thoughts and words. A new one for every sequence."""

    signs: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """How to know the format by a chat template: all texts of one of these groups stand in its source."""
    end: ClassVar[str] = ""
    """What the thoughts end with, so that a grammar can begin behind it; empty where nothing marks their end."""

    def __init__(self, begun: bool) -> None:
        super().__init__()
        self.begun = begun
        """Whether the prompt opened the thoughts already."""

    @abstractmethod
    def read(self) -> Steps[None]:
        """Reads the whole answer: `think` its thoughts, `say` all else."""

    @classmethod
    def begins(cls, prompt: str) -> bool:
        """Whether the answer to this prompt begins among the thoughts."""
        return False
