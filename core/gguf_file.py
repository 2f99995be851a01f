"""GGUF files: their metadata and one tensor at a time, as it is stored or as float32 by the `gguf` package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from mainspring.core.errors import ModelError
from mainspring.core.gguf_header import TensorEntry, read_header


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
        header = read_header(path)
        metadata, tensors = header.metadata, {entry.name: _tensor(path, entry) for entry in header.tensors}
        data = np.memmap(path, dtype=np.uint8, mode="r")
        if int(metadata.get("split.count", 1)) > 1:
            parts = metadata["split.count"]
            raise ModelError(f"{path} is one of {parts} parts; join them with llama-gguf-split --merge")
        ends = [tensor.offset + tensor.num_bytes for tensor in tensors.values()]
        if max(ends, default=0) > data.size:
            raise ModelError(f"{path} has {data.size} bytes of {max(ends)}; it was cut off, fetch it again")
        return cls(path, metadata, tensors, data)

    def rows(self, name: str, spans: Sequence[tuple[int, int]] = ()) -> NDArray[np.uint8]:
        """A tensor's bytes as they are stored, [..., bytes of a row]; only `spans` of rows where there are any.

        The whole is a view of the mapped file.
        """
        tensor = self.tensors[name]
        stored = self.data[tensor.offset : tensor.offset + tensor.num_bytes]
        rows = np.asarray(stored).reshape(*tensor.shape[:-1], -1)
        return np.concatenate([rows[first:past] for first, past in spans]) if spans else rows

    def read(self, name: str, spans: Sequence[tuple[int, int]] = ()) -> NDArray[np.float32]:
        """A tensor's values, dequantized; only `spans` of a matrix's rows where there are any.

        Raises `ModelError` for a quantization type that cannot be.
        """
        tensor = self.tensors[name]
        try:
            values = dequantize(self.rows(name, spans), tensor.kind)
        except NotImplementedError:
            raise ModelError(
                f"{name} in {self.path} is stored as {tensor.kind.name}, which cannot be dequantized; "
                "use another quantization of the model"
            ) from None
        return np.require(values, dtype=np.float32, requirements=["C", "W"])


def _tensor(path: Path, entry: TensorEntry) -> GGUFTensor:
    try:
        kind = GGMLQuantizationType(entry.kind)
    except ValueError:
        raise ModelError(
            f"{entry.name} in {path} is stored as type {entry.kind}, which the installed gguf package does not know; "
            "update it, or use another quantization of the model"
        ) from None
    block_values, block_bytes = GGML_QUANT_SIZES[kind]
    return GGUFTensor(entry.shape, kind, entry.offset, prod(entry.shape) // block_values * block_bytes)
