"""What Mainspring finds by entry point. Imports no SDK, so that listing backends stays cheap."""

from __future__ import annotations

from mainspring import hookimpl
from mainspring_{{cookiecutter.name}}.backend import {{cookiecutter.title}}Backend


@hookimpl
def mainspring_backends() -> list[{{cookiecutter.title}}Backend]:
    """One backend, by the name `{{cookiecutter.name}}`."""
    return [{{cookiecutter.title}}Backend()]
