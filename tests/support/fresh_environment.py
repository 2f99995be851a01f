"""A new virtual environment, as a user has it who installed Mainspring and nothing of ours beside it."""

from __future__ import annotations

import os
import sysconfig
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

COMMANDS: Mapping[str, str] = {
    "mainspring": "mainspring.server.cli",
    # Its entry point is that of the version that was installed last; this is the one that is tested.
    "pytest": "pytest -p no:mainspring_conformance -p mainspring.core.conformance.pytest_plugin",
}
"""What an installation would have written into `bin`."""


@dataclass(frozen=True, slots=True)
class FreshEnvironment:
    """Its interpreter, and what a shell would have in which it is activated."""

    python: Path
    variables: Mapping[str, str]


def fresh_environment(directory: Path) -> FreshEnvironment:
    """It sees Mainspring and its dependencies as they are installed here, so that only plugins have to be installed,
    and has `mainspring` and `pytest` as commands.
    """
    home = directory / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)}))
    (site / "mainspring_and_its_dependencies.pth").write_text(
        f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    )
    for name, module in COMMANDS.items():
        command = home / "bin" / name
        command.write_text(f'#!/bin/sh\nexec {python} -m {module} "$@"\n')
        command.chmod(0o755)
    path = os.pathsep.join((str(home / "bin"), os.environ["PATH"]))
    return FreshEnvironment(python, {**os.environ, "PATH": path, "VIRTUAL_ENV": str(home)})
