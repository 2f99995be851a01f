"""Each stand-in in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PATIENCE = 280


@pytest.mark.parametrize("standin", ["gaudi", "gaudi-lazy", "neuron", "neuron-xla"])
def test_the_backend_holds_on_its_stand_in(standin: str) -> None:
    folder = HERE / standin.partition("-")[0]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)],
        cwd=HERE.parents[1], env={**os.environ, "STANDIN": standin}, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-6000:]
