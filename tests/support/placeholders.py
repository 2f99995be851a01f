"""Packages as AWS leaves them on PyPI under its own packages' names: they install, and refuse to be imported."""

from __future__ import annotations

from pathlib import Path

SAYS = "WRONG PACKAGE: install from AWS's index"
PACKAGES = {"torch_neuronx": "1.0", "nki": "0.0.1"}


def install(directory: Path) -> None:
    """Into a folder that stands on the import path."""
    for package, version in PACKAGES.items():
        (directory / package).mkdir()
        (directory / package / "__init__.py").write_text(f"raise ImportError({SAYS!r})\n")
        told = directory / f"{package}-{version}.dist-info"
        told.mkdir()
        (told / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: {version}\n"
        )
