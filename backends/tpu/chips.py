"""Which TPU chips the machine has, by their PCI identities: no runtime is started to know it.

Identities as in JAX's `hardware_utils.py`; memory as in Google Cloud's TPU documentation, a chip each, or a core each
where torch sees two devices on a chip (v7).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mainspring.backends.bucketed.bus import BUS, identities

GOOGLE = "0x1ae0"
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Chip:
    """One generation."""

    arch: str
    hbm_bytes: int


CHIPS = {
    "0x0027": Chip("v3", 32 * GIB),
    "0x005e": Chip("v4", 32 * GIB),
    "0x0062": Chip("v5p", 95 * GIB),
    "0x0063": Chip("v5e", 16 * GIB),
    "0x006f": Chip("v6e", 32 * GIB),
    "0x0076": Chip("v7", 96 * GIB),
}


def chips(bus: Path = BUS) -> list[Chip]:
    """The TPUs on the bus, in its order. A generation that is not known here is left out."""
    return [CHIPS[identity] for identity in identities(GOOGLE, bus) if identity in CHIPS]
