"""What a shell says of its GPUs before one is opened, as far as it is the same for all of them. Imports no torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mainspring.core.backend import Capabilities
from mainspring.core.config import KVDtype


def missing_software(library: str, vendor: str) -> str:
    """What of the software is not installed; empty when nothing is. `library` is torch's own for this vendor."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        return "torch is not installed"
    if not (Path(torch.origin).parent / "lib" / f"libtorch_{library}.so").exists():
        return f"the installed torch was built without {vendor}"
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


def capabilities(collectives: str, verified: str, narrow: tuple[KVDtype, ...] = ()) -> Capabilities:
    """What the kernels and captured graphs give on any of torch's GPUs.

    `narrow`: 8-bit floats that its kernels convert. A cache of them holds keys and values at a scale of 1.
    """
    return Capabilities(
        compute_dtypes=("bfloat16", "float16", "float32"),
        kv_dtypes=("bfloat16", "float16", "float32", *narrow),
        block_sizes=(32, 16, 64, 128),
        attention=frozenset({"sliding_window", "softcap", "sinks"}),
        graphs="capture",
        collectives=collectives,
        asynchronous=True,
        copies_async=True,
        samples_in_program=True,
        verified=verified,
    )
