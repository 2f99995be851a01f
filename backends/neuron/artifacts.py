"""Where compiled programs are kept: a folder for each model, ladder of buckets and compiler.

neuronx-cc takes minutes for a large model; what it made is found again by what it was made of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path


def folder(root: Path, model: str, buckets: Mapping[str, tuple[int, ...]], compiler: str) -> Path:
    """The folder of one combination. A model is told by where it lies and by its config, as far as it has one."""
    config = Path(model) / "config.json"
    told = config.read_bytes() if config.is_file() else b""
    ladders = ";".join(f"{name}={','.join(map(str, rungs))}" for name, rungs in sorted(buckets.items()))
    digest = hashlib.sha256(b"\0".join((model.encode(), told, ladders.encode(), compiler.encode()))).hexdigest()
    return root / f"{Path(model).name or 'model'}-{digest[:16]}"
