"""The key-value header of a GGUF file, read in about a tenth of a second. No tensors here.

The `gguf` package's `GGUFReader` wraps every element of every array in numpy objects, which takes seconds for a
vocabulary of 50,000 tokens; the server needs the vocabulary on every start and nothing else of the file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from mainspring.core.errors import ModelError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING = 8
_ARRAY = 9


def read_metadata(path: Path) -> dict[str, Any]:
    """All metadata of a GGUF file: scalars as Python's, arrays as lists.

    Raises ModelError when the file is no GGUF, is of an unknown version, or ends too early.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"{path.name} is not a GGUF file: it does not begin with the letters GGUF")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _Header(data).read()
            except (struct.error, IndexError, UnicodeDecodeError) as error:
                raise ModelError(
                    f"{path.name} is damaged: its GGUF header cannot be read; download it again"
                ) from error


class _Header:
    """A cursor over the mapped file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.position = 4

    def read(self) -> dict[str, Any]:
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ModelError(f"GGUF version {version} is not supported; versions 2 and 3 are")
        self._scalar("<Q")  # number of tensors
        num_pairs = self._scalar("<Q")
        metadata = {}
        for _ in range(num_pairs):
            key = self._string()
            metadata[key] = self._value(self._scalar("<I"))
        return metadata

    def _scalar(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self.data, self.position)
        self.position += struct.calcsize(layout)
        return value

    def _string(self) -> str:
        start = self.position + 8
        end = start + self._scalar("<Q")
        if end > len(self.data):
            raise IndexError(end)
        self.position = end
        return self.data[start:end].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise IndexError(kind)
        return self._scalar(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind, length = self._scalar("<I"), self._scalar("<Q")
        if length > len(self.data):
            raise IndexError(length)
        if kind not in _SCALARS:
            return [self._value(kind) for _ in range(length)]
        layout = f"<{length}{_SCALARS[kind][1]}"
        values = list(struct.unpack_from(layout, self.data, self.position))
        self.position += struct.calcsize(layout)
        return values
