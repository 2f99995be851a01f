"""How ranks find each other: a store on the loopback interface, at a port that the kernel chooses for rank 0.

Torch is imported in calls: rank 0 listens, and starts the others, before it takes the seconds that this costs.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from mainspring.core.errors import StartupError
from mainspring.core.parallel.stages import Place

HOST = "127.0.0.1"
MEETING_SECONDS = 600.0
"""What ranks may take to open their devices, which may compile. One that dies or stops meanwhile is seen at once."""

_STEP_HOURS = 24
"""Ranks wait for each other as long as it takes: who is dead or stopped is told by its process, who is slow by the
server's own clock."""


class NotMetError(StartupError):
    """Not all ranks came in time."""


@contextmanager
def listening() -> Iterator[socket.socket]:
    """The socket of rank 0's store, which nothing but this host can reach."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((HOST, 0))
        listener.listen()
        yield listener


def meet(place: Place, collectives: str, port: int, listener: socket.socket | None = None) -> None:
    """Makes the default process group. Rank 0 brings the `listener`, which it gives away; `port` is the listener's.

    Raises `NotMetError` when not all ranks come.
    """
    from torch import distributed

    patience = timedelta(seconds=MEETING_SECONDS)
    try:
        store = distributed.TCPStore(  # type: ignore[attr-defined]
            HOST,
            port,
            place.world,
            is_master=listener is not None,
            timeout=patience,
            wait_for_workers=True,
            master_listen_fd=None if listener is None else listener.detach(),
        )
        distributed.init_process_group(
            collectives,
            store=store,
            rank=place.rank,
            world_size=place.world,
            timeout=timedelta(hours=_STEP_HOURS),
        )
    except (distributed.DistError, RuntimeError) as error:
        raise NotMetError(
            f"rank {place.rank} did not meet the others of {place.world} within {MEETING_SECONDS:.0f} s: {error}; "
            "look at what the other ranks wrote"
        ) from error


def part() -> None:
    """Gives the process group back."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
