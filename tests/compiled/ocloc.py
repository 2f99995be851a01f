"""Intel's offline compiler: SPIR-V to the native code of a GPU.

Debian 12's is from 2022: it knows PVC and DG2, not what came after them.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path

DEVICES = {"pvc": "pvc", "dg2": "dg2-g10"}
"""As ocloc calls them, by family."""


def build(spirv: bytes, device: str) -> tuple[int, int, str]:
    """(bytes of native code, bytes that registers spill, error): 0 bytes of code when it failed."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.spv"
        source.write_bytes(spirv)
        large = ["-options", "-cl-intel-enable-auto-large-GRF-mode"] if device == "pvc" else []
        command = ["ocloc", "compile", "-file", str(source), "-spirv_input", "-device", DEVICES[device], *large]
        done = subprocess.run(
            [*command, "-output", "code", "-out_dir", folder], capture_output=True, text=True, timeout=300, check=False
        )
        built = list(Path(folder).glob("*.bin"))
        said = done.stdout + done.stderr
        if done.returncode or not built:
            return 0, 0, said.strip()[-300:] or f"ocloc ended with {done.returncode}"
        spilled = re.search(r"spill\w*\D+(\d+)", said)
        return built[0].stat().st_size, int(spilled.group(1)) if spilled else 0, ""
