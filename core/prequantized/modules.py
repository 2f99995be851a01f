"""The quantized modules of a checkpoint: which tensors make up each weight, read when the weight is wanted.

Each of a module's tensors is read once. The module read last is kept, because a layer first asks what it is stored as
and then for the values: one module's memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from torch import Tensor

from mainspring.core.entry import Entry
from mainspring.core.layers.weights import Shape, Stored
from mainspring.core.prequantized.find import find
from mainspring.core.prequantized.format import Format
from mainspring.core.prequantized.recognize import recognize

UNUSED = frozenset({"k_scale", "v_scale", "q_scale", "prob_scale", "output_scale"})
"""Calibrated scales of activations that stay as they are here: those of attention and of the cache."""


class QuantizedModules:
    """Puts one entry, the weight, in the place of each quantized module's tensors."""

    def __init__(
        self, entries: dict[str, Entry], files: Mapping[str, Any], quantization: Mapping[str, Any], source: str
    ) -> None:
        self._files = files
        self._stored: dict[str, dict[str, str]] = {}
        """Names in the checkpoint's files, by the weight's name and what each tensor is of its module."""
        self._at: dict[str, str] = {}
        """The key in `files` of each of those."""
        self._last: tuple[str, Stored] | None = None
        self._format: Format | None = None
        if quantization:
            self._format = find(recognize(quantization, source), _notes(files))
            self._gather(entries, self._format)

    def __contains__(self, weight: str) -> bool:
        return weight in self._stored

    def read(self, weight: str) -> Stored:
        """A weight in its neutral form, whole."""
        if self._last is not None and self._last[0] == weight:
            return self._last[1]
        if self._format is None:
            raise KeyError(weight)
        self._last = None  # so that two modules are never held at once
        parts = {part: self._tensor(name) for part, name in self._stored[weight].items()}
        module = _split(next(iter(self._stored[weight].values())))[0]
        self._last = weight, self._format.read(module, parts)
        return self._last[1]

    def _tensor(self, stored: str) -> Tensor:
        tensor: Tensor = self._files[self._at[stored]].get_tensor(stored)
        return tensor

    def _gather(self, entries: dict[str, Entry], form: Format) -> None:
        for name in [name for name in entries if _split(name)[1] in UNUSED]:
            del entries[name]
        modules: dict[str, dict[str, str]] = {}
        for name in entries:
            module, part = _split(name)
            modules.setdefault(module, {})[part] = name
        for module, parts in modules.items():
            if form.quantizes(frozenset(parts)):
                self._take(entries, form, module, {part: at for part, at in parts.items() if form.consumed(part)})

    def _take(self, entries: dict[str, Entry], form: Format, module: str, parts: Mapping[str, str]) -> None:
        taken = {part: entries.pop(name) for part, name in parts.items()}
        weight = f"{module}.weight"
        self._stored[weight] = {part: entry.stored for part, entry in taken.items()}
        self._at |= {entry.stored: parts[part] for part, entry in taken.items()}
        shapes: dict[str, Shape] = {part: entry.shape for part, entry in taken.items()}
        stored = next(iter(taken.values())).stored
        shape = form.shape(_split(stored)[0], shapes, lambda part: self._tensor(taken[part].stored))
        entries[weight] = Entry(stored, shape, prod(shape))


def _notes(files: Mapping[str, Any]) -> Mapping[str, str]:
    """The metadata of all files in one; `files` has each once for each of its tensors."""
    opened = {id(file): file for file in files.values()}
    return {key: text for file in opened.values() for key, text in (file.metadata() or {}).items()}


def _split(name: str) -> tuple[str, str]:
    """A tensor's module and what it is there: the last of its name, or all from `weight` on (`weight.absmax`)."""
    module, separator, rest = name.partition(".weight.")
    if separator:
        return module, f"weight.{rest}"
    module, _, part = name.rpartition(".")
    return module, part
