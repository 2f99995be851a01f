"""Makes every checkpoint anew by its tool, and compares: `python -m tests.quantized.verify OUT [NAME ...]`.

In an environment with the tools. Ends with 1 where a tool fails, or our logits are not the tool's.
"""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from tests.quantized import source
from tests.quantized.compare import TOLERANCE, difference
from tests.quantized.make import TOOLS, make


def verify(name: str, model: Path, directory: Path) -> bool:
    """One line about one checkpoint; whether all is well."""
    torch.manual_seed(0)
    begun = time.monotonic()
    try:
        make(name, model, directory)
        found = difference(directory, directory / "reference.safetensors")
    except Exception:  # noqa: BLE001  whatever a tool raises is this line's finding, and the others go on
        traceback.print_exc()
        print(f"{name}: failed", flush=True)
        return False
    tool, good = (directory / "tool.txt").read_text().strip(), found < TOLERANCE
    words = "as the tool's" if good else f"NOT the tool's within {TOLERANCE}"
    print(f"{name}: {tool}; logits {words}: {found:.1e}; {time.monotonic() - begun:.0f} s", flush=True)
    return good


def main(out: Path, names: list[str]) -> int:
    """All checkpoints, or those named."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as model:
        source.write(Path(model))
        wrong = [name for name in names or TOOLS if not verify(name, Path(model), out / name)]
    print(f"{len(wrong)} of {len(names or TOOLS)} failed: {', '.join(wrong)}" if wrong else "all are well")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
