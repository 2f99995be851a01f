"""What Mainspring finds by entry point. Imports no SDK, so that listing backends stays cheap."""

from __future__ import annotations

from mainspring import hookimpl
from mainspring_abacus.backend import AbacusBackend


@hookimpl
def mainspring_backends() -> list[AbacusBackend]:
    """One backend, by the name `abacus`."""
    return [AbacusBackend()]
