"""docs/tgi-compatibility.md is what the tests say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_the_page_is_up_to_date_and_every_row_has_a_test_or_a_reason() -> None:
    written = subprocess.run(
        [sys.executable, "-m", "tests.support.tgi_table"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (written.returncode, written.stderr) == (0, "")
    assert written.stdout == (ROOT / "docs" / "tgi-compatibility.md").read_text(), (
        "run `python -m tests.support.tgi_table > docs/tgi-compatibility.md`"
    )
