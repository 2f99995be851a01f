"""The groups that a rank belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.core.backend import Communicator, Device
from mainspring.core.parallel.stages import Place


@dataclass(frozen=True, slots=True)
class Groups:
    """None stands for a group of one, which has nobody to meet."""

    everyone: Communicator | None = None
    """All ranks of the server."""
    sharing: Communicator | None = None
    """Those that have a part of the same layers."""


def make_groups(device: Device, place: Place) -> Groups:
    """All ranks do this at once, when they have met."""
    if place.world == 1:
        return Groups()
    everyone = device.communicator(range(place.world))
    if place.stage.count == 1:
        return Groups(everyone, everyone)
    return Groups(everyone, device.communicator(place.sharing) if place.shard.world > 1 else None)
