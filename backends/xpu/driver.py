"""Intel's GPUs on the PCI bus, as Linux lists them: no runtime is started to know that there is one.

Identities as in the Linux kernel's table (`include/drm/intel/pciids.h`), of the families that kernels were compiled for
or that run the same code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

INTEL = "0x8086"
GIB = 2**30
BUS = Path("/sys/bus/pci/devices")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU on the bus."""

    name: str
    arch: str
    """As `ocloc` calls the family."""
    total_bytes: int


PRODUCTS = {
    "0x0bd5": Gpu("Intel Data Center GPU Max 1550", "pvc", 128 * GIB),
    "0x0bda": Gpu("Intel Data Center GPU Max 1100", "pvc", 48 * GIB),
    "0x56a0": Gpu("Intel Arc A770", "dg2", 16 * GIB),
    "0x56a1": Gpu("Intel Arc A750", "dg2", 8 * GIB),
    "0x56c0": Gpu("Intel Data Center GPU Flex 170", "dg2", 16 * GIB),
    "0xe20b": Gpu("Intel Arc B580", "bmg", 12 * GIB),
    "0xe20c": Gpu("Intel Arc B570", "bmg", 10 * GIB),
}
"""Memory as Intel's product pages have it; an opened device is asked itself."""


def gpus(bus: Path = BUS) -> list[Gpu]:
    """The GPUs on the bus, in its order. A product that is not known here is left out."""
    places = sorted(bus.iterdir()) if bus.is_dir() else []
    products = (_word(place / "device") for place in places if _word(place / "vendor") == INTEL)
    return [PRODUCTS[product] for product in products if product in PRODUCTS]


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
