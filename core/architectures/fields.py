"""Checked access to the keys of a config: whatever is missing or unusable is said with its key, value and file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mainspring.core.errors import ModelError


@dataclass(frozen=True, slots=True)
class Fields:
    """The keys of one `config.json`, or of GGUF metadata under the same names. A key that is null counts as absent."""

    values: Mapping[str, Any]
    source: str
    """The file, for messages."""

    def has(self, name: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.unusable(name, "a positive integer is needed")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise self.unusable(name, "a positive number is needed")
        return float(value)

    def optional_number(self, name: str) -> float | None:
        """A positive number, or None when the key is absent."""
        return self.number(name) if self.has(name) else None

    def flag(self, name: str, default: bool) -> bool:
        """A truth value."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self.unusable(name, "true or false is needed")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(name, default)
        if not isinstance(value, str):
            raise self.unusable(name, "a string is needed")
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers."""
        value = self._value(name, None)
        if not isinstance(value, list) or not all(isinstance(item, int | float) for item in value):
            raise self.unusable(name, "a list of numbers is needed")
        return tuple(float(item) for item in value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self._value(name, None)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.unusable(name, "a list of strings is needed")
        return tuple(value)

    def table(self, name: str) -> Fields:
        """The keys of a nested object; none when it is absent."""
        value = self._value(name, {})
        if not isinstance(value, Mapping):
            raise self.unusable(name, "an object is needed")
        return Fields(value, f"{self.source}, {name}")

    def renamed(self, names: Mapping[str, str]) -> Fields:
        """The same keys under other names, for configs with words of their own. Keys already so named win."""
        moved = {new: self.values[old] for old, new in names.items() if old in self.values}
        return replace(self, values={**moved, **self.values})

    def over(self, fallback: Fields) -> Fields:
        """These keys, and those of `fallback` where they are absent here."""
        mine = {name: value for name, value in self.values.items() if value is not None}
        return replace(self, values={**fallback.values, **mine})

    def unusable(self, name: str, remedy: str) -> ModelError:
        """The error for a key whose value cannot be used."""
        return ModelError(f"{name} = {self.values.get(name)!r} in {self.source} cannot be used: {remedy}")

    def _value(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise ModelError(f"{self.source} has no {name!r}; add it as the model's authors published it")
        return default
