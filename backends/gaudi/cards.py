"""Which Gaudi cards the machine has, by their PCI identities: no runtime is started to know it.

Identities as in the kernel driver (`pci_ids.h`); memory as in Intel's data sheets.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mainspring.backends.bucketed.bus import BUS, identities

HABANA = "0x1da3"
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Card:
    """One generation."""

    arch: str
    hbm_bytes: int
    fp8_highest: float = 0.0
    """Largest float8_e4m3fn that its matrix unit takes; 0: it has none. Gaudi 2 reserves the highest exponent."""


GAUDI, GAUDI2, GAUDI3 = Card("gaudi", 32 * GIB), Card("gaudi2", 96 * GIB, 240.0), Card("gaudi3", 128 * GIB, 448.0)
CARDS = {"0x1000": GAUDI, "0x1010": GAUDI, "0x1020": GAUDI2, "0x1060": GAUDI3}


def cards(bus: Path = BUS) -> list[Card]:
    """The cards on the bus, in its order. A generation that is not known here is left out."""
    return [CARDS[identity] for identity in identities(HABANA, bus) if identity in CARDS]


def of_arch(arch: str) -> Card:
    """The generation of a device that was found; one without float8 for what is no card."""
    return next((card for card in CARDS.values() if card.arch == arch), Card(arch, 0))
