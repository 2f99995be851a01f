"""What the runner asks of a drafter.

Legend: T tokens of the target's step, R rows that draft, F features of the target's hidden states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from mainspring.core.backend import Device, KVCache
from mainspring.core.batch import Batch, Buckets
from mainspring.core.execution.drafters.choosing import Drawing
from mainspring.core.execution.drafters.places import Scratch
from mainspring.core.execution.inputs import StepTensors
from mainspring.core.execution.table import StateTable
from mainspring.core.execution.upload import Upload


@dataclass(frozen=True, slots=True)
class DraftPlan:
    """The host's part of drafting behind one step."""

    places: tuple[int, ...]
    """Rows of the batch that get drafts: those that want them, but for such as the drafter is not ready for."""
    details: Any
    """The drafter's own."""


@dataclass(frozen=True, slots=True)
class Ran:
    """The target's step as it ran. Its choices are in the token table, at the positions behind those computed."""

    inputs: StepTensors
    hidden: Tensor
    """[T, F]"""
    last: Tensor
    """[R] int64: which of the T tokens is the last good one of each row that drafts; its choice is known."""


@dataclass(frozen=True, slots=True)
class Beside:
    """What a drafter with a cache works with, beside the target."""

    device: Device
    table: StateTable
    """The target's: tokens, blocks and sampling parameters are the same."""
    drawing: Drawing
    upload: Upload
    kv: KVCache
    """Blocks of the target's ids, and scratch behind them."""
    scratch: Scratch
    count: int
    """Tokens drafted at once."""
    buckets: Buckets | None
    """The target's."""


class Drafter(Protocol):
    """Drafts a line of tokens for each row that wants it. Steps come in order, those without drafts too."""

    @property
    def count(self) -> int:
        """Tokens that it drafts at once."""
        ...

    def plan(self, batch: Batch, wanting: Sequence[int]) -> DraftPlan:
        """On the host, when the step is planned and the state table is up to date: what to do behind it.

        `wanting` are places in the batch's rows. Called for every step.
        """
        ...

    def draft(self, plan: DraftPlan, ran: Ran) -> Tensor | None:
        """On the device, behind the step: [R, count] int32 token ids; None where no row drafts."""
        ...

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """On the device, before the step: block contents move (source, destination)."""
        ...
