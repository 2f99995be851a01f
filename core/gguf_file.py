"""GGUF files: their metadata, their table of tensors, and one tensor at a time as float32.

Format: the GGUF specification, versions 2 and 3, of ggml. The `gguf` package has a reader too, and its quantization
types and dequantization are used here; its reader makes an array object of every token of the vocabulary, which takes
seconds where this takes a tenth of one.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from mainspring.core.errors import ModelError

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""Metadata value types by their number, as `struct` formats."""
STRING, ARRAY = 8, 9
DEFAULT_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor of a file; `shape` has the slowest dimension first, as torch has it."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    """From the start of the file, in bytes."""
    num_bytes: int


@dataclass(frozen=True, slots=True)
class GGUFFile:
    """An open file. Its data is mapped, so a tensor costs memory only while it is used."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GGUFTensor]
    data: NDArray[np.uint8]

    @classmethod
    def open(cls, path: Path) -> GGUFFile:
        """Reads the header. Raises `ModelError` for a file that is not GGUF, cut off, or one part of several."""
        try:
            data = np.memmap(path, dtype=np.uint8, mode="r")
            metadata, tensors = _Header(data).read()
        except FileNotFoundError:
            raise ModelError(f"{path} does not exist") from None
        except (struct.error, ValueError, KeyError, ZeroDivisionError) as error:
            raise ModelError(f"{path} is not a sound GGUF file ({error}); fetch it again") from error
        if int(metadata.get("split.count", 1)) > 1:
            parts = metadata["split.count"]
            raise ModelError(f"{path} is one of {parts} parts; join them with llama-gguf-split --merge")
        ends = [tensor.offset + tensor.num_bytes for tensor in tensors.values()]
        if max(ends, default=0) > data.size:
            raise ModelError(f"{path} has {data.size} bytes of {max(ends)}; it was cut off, fetch it again")
        return cls(path, metadata, tensors, data)

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor's values, dequantized. Raises `ModelError` for a quantization type that cannot be."""
        tensor = self.tensors[name]
        stored = self.data[tensor.offset : tensor.offset + tensor.num_bytes]
        rows = np.asarray(stored).reshape(*tensor.shape[:-1], -1)
        try:
            values = dequantize(rows, tensor.kind)
        except NotImplementedError:
            raise ModelError(
                f"{name} in {self.path} is stored as {tensor.kind.name}, which cannot be dequantized; "
                "use another quantization of the model"
            ) from None
        return np.require(values, dtype=np.float32, requirements=["C", "W"])


class _Header:
    """A cursor over the header's bytes."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self._bytes = data.data
        self._at = 0

    def read(self) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
        """Metadata, and tensors with their offsets from the start of the file."""
        if bytes(self._take(4)) != b"GGUF":
            raise ValueError("it does not start with GGUF")
        version = self._scalar("<I")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, known are 2 and 3 in little-endian order")
        num_tensors, num_values = self._scalar("<Q"), self._scalar("<Q")
        metadata = {self._string(): self._value(self._scalar("<I")) for _ in range(num_values)}
        table = [self._tensor() for _ in range(num_tensors)]
        alignment = int(metadata.get("general.alignment", DEFAULT_ALIGNMENT))
        start = -(-self._at // alignment) * alignment
        return metadata, {
            name: GGUFTensor(tensor.shape, tensor.kind, start + tensor.offset, tensor.num_bytes)
            for name, tensor in table
        }

    def _tensor(self) -> tuple[str, GGUFTensor]:
        name = self._string()
        shape = tuple(self._scalar("<Q") for _ in range(self._scalar("<I")))[::-1]
        kind = GGMLQuantizationType(self._scalar("<I"))
        block_values, block_bytes = GGML_QUANT_SIZES[kind]
        return name, GGUFTensor(shape, kind, self._scalar("<Q"), prod(shape) // block_values * block_bytes)

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._scalar(SCALARS[kind])
        kind, length = self._scalar("<I"), self._scalar("<Q")
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind])
            return np.frombuffer(self._take(length * dtype.itemsize), dtype).tolist()
        return [self._value(kind) for _ in range(length)]

    def _string(self) -> str:
        # Tokens of some vocabularies are no valid UTF-8; nothing here depends on those.
        return bytes(self._take(self._scalar("<Q"))).decode("utf-8", errors="replace")

    def _scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(form, self._bytes, self._at)
        self._at += struct.calcsize(form)
        return value

    def _take(self, length: int) -> memoryview:
        if self._at + length > len(self._bytes):
            raise ValueError("it ends within its header")
        taken = self._bytes[self._at : self._at + length]
        self._at += length
        return taken
