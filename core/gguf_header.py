"""The header of a GGUF file: metadata and the table of tensors, read in about a tenth of a second.

The engine reads weights by it (`core/gguf_file.py`), the server the vocabulary. The `gguf` package's reader makes an
array object of every token of the vocabulary, which takes seconds.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mainspring.core.errors import ModelError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Metadata value types by their number, as `struct` formats."""
_STRING, _ARRAY = 8, 9
_DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One row of the table of tensors."""

    name: str
    shape: tuple[int, ...]
    """The slowest dimension first, as torch has it; the file has it last."""
    kind: int
    """A `GGMLQuantizationType`."""
    offset: int
    """From the start of the file, in bytes."""


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """All that a file says before its data."""

    metadata: Mapping[str, Any]
    tensors: tuple[TensorEntry, ...]


def read_header(path: Path) -> GGUFHeader:
    """Reads a file's header. Raises `ModelError` for a file that is absent, is not GGUF, or is cut off within it."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data).header()
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except (struct.error, ValueError, KeyError, ZeroDivisionError) as error:
        raise ModelError(f"{path} is not a sound GGUF file ({error}); fetch it again") from error


class _Cursor:
    """Where in the header the next value begins."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0

    def header(self) -> GGUFHeader:
        if self._take(4) != b"GGUF":
            raise ValueError("it does not start with GGUF")
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, known are 2 and 3 in little-endian order")
        num_tensors, num_values = self._scalar("<Q"), self._scalar("<Q")
        metadata = {self._string(): self._value(self._scalar("<I")) for _ in range(num_values)}
        table = [self._tensor() for _ in range(num_tensors)]
        alignment = int(metadata.get("general.alignment", _DEFAULT_ALIGNMENT))
        start = -(-self._at // alignment) * alignment
        tensors = (TensorEntry(name, shape, kind, start + offset) for name, shape, kind, offset in table)
        return GGUFHeader(metadata, tuple(tensors))

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Its offset is from the start of the data, which only the end of the table tells."""
        name = self._string()
        shape = tuple(self._scalar("<Q") for _ in range(self._scalar("<I")))[::-1]
        return name, shape, self._scalar("<I"), self._scalar("<Q")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._scalar(_SCALARS[kind])
        kind, length = self._scalar("<I"), self._scalar("<Q")
        if kind in _SCALARS:
            form = _SCALARS[kind]
            return [value for (value,) in struct.iter_unpack(form, self._take(length * struct.calcsize(form)))]
        return [self._value(kind) for _ in range(length)]

    def _string(self) -> str:
        # Tokens of some vocabularies are no valid UTF-8; nothing here depends on those.
        return self._take(self._scalar("<Q")).decode("utf-8", errors="replace")

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return value

    def _take(self, length: int) -> bytes:
        if self._at + length > len(self._data):
            raise ValueError("it ends within its header")
        taken = self._data[self._at : self._at + length]
        self._at += length
        return taken
