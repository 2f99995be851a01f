"""Which Neuron chips the machine has, by their PCI identities: no runtime is started to know it.

Identities as in AWS's kernel driver (`neuron_device.h`); memory and cores as in the Neuron documentation. A device of
torch's is a core, or two of them from Trainium 2 on (logical NeuronCores, their default size there).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mainspring.backends.bucketed.bus import BUS, identities

AMAZON = "0x1d0f"
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Chip:
    """One generation."""

    arch: str
    cores: int
    """Devices that torch sees on one chip."""
    hbm_bytes: int
    native: bool
    """Whether TorchNeuron runs on it; those before are XLA's."""


CHIPS = {
    "0x7164": Chip("trn1", 2, 32 * GIB, False),
    "0x7264": Chip("inf2", 2, 32 * GIB, False),
    "0x7364": Chip("trn2", 4, 96 * GIB, True),
    "0x7564": Chip("trn3", 4, 144 * GIB, True),
    "0x7565": Chip("trn3", 4, 144 * GIB, True),
}


@dataclass(frozen=True, slots=True)
class Core:
    """What torch sees as one device."""

    chip: Chip
    hbm_bytes: int


def chips(bus: Path = BUS) -> list[Chip]:
    """The chips on the bus, in its order. A generation that is not known here is left out, the first Inferentia too."""
    return [CHIPS[identity] for identity in identities(AMAZON, bus) if identity in CHIPS]


def cores(found: Sequence[Chip]) -> list[Core]:
    """The devices of these chips, each with its share of the chip's memory."""
    return [Core(chip, chip.hbm_bytes // chip.cores) for chip in found for _ in range(chip.cores)]
