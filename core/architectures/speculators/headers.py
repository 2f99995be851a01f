"""Names and shapes of the tensors in a safetensors file, from its header (huggingface.co/docs/safetensors).

The safetensors package would read them as well, and bring torch's bindings where none may be imported.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from mainspring.core.errors import ModelError

LONGEST_HEADER = 100_000_000
"""Bytes; the format's own bound."""


class _Tensor(msgspec.Struct):
    shape: tuple[int, ...]


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name. Raises `ModelError` for a file that is not of the format."""
    try:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = opened.read(size) if size <= LONGEST_HEADER else b""
        entries = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        entries.pop("__metadata__", None)
        return {name: msgspec.json.decode(entry, type=_Tensor).shape for name, entry in entries.items()}
    except (OSError, msgspec.MsgspecError) as error:
        raise ModelError(f"{file} is not a safetensors file that can be read ({error}); fetch it again") from error
