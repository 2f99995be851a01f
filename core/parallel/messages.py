"""What rank 0 and another rank say to each other, on two pipes that nobody else holds. msgpack, never pickle.

To a rank: one `RankStart`, then a frame a `Batch`; an empty frame means that it may go. From a rank: one `RankReport`.
"""

from __future__ import annotations

import msgspec

from mainspring.core.batch import Batch
from mainspring.core.config import EngineConfig

STOP = b""
"""The frame that ends a rank."""


class RankStart(msgspec.Struct, frozen=True, kw_only=True):
    """What a rank is told before anything else."""

    config: EngineConfig
    rank: int
    port: int
    """Where rank 0's store listens."""
    leader_pid: int
    """The rank ends when this is not its parent any more."""
    report: int
    """The descriptor that its report goes to."""


class RankReport(msgspec.Struct, frozen=True):
    """How a rank's start went."""

    reasons: tuple[str, ...] = ()
    """Why it cannot serve; empty when it does."""


def pack_batch(batch: Batch) -> bytes:
    """A step's plan as a frame's body, never empty."""
    return msgspec.msgpack.encode(batch)


def unpack_batch(frame: bytes) -> Batch:
    """Raises msgspec.ValidationError for a frame that is none."""
    return msgspec.msgpack.decode(frame, type=Batch)
