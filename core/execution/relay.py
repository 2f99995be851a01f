"""What passes between the stages of a model in a step: hidden states to the next, and from the last what it chose.

All of it lies between programs, never inside one: programs may be captured, recorded and played again.

Legend: T packed tokens, E hidden size, M tokens of the largest step.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mainspring.core.backend import Communicator
from mainspring.core.execution.scoring import Found
from mainspring.core.parallel.stages import EVERYTHING, Place


@dataclass(frozen=True, slots=True)
class Relay:
    """A rank's place among the stages. Without a `group` there is one stage, and nothing passes."""

    place: Place = EVERYTHING
    group: Communicator | None = None
    """Of all ranks of the server."""
    room: Tensor | None = None
    """[M, E] Where hidden states arrive; None on the first stage."""

    @property
    def scores(self) -> bool:
        """Whether this rank has the head, and chooses."""
        return self.place.stage.last

    def receive(self, num_tokens: int) -> None:
        """Before a step's program: what the stage before made of these tokens."""
        if self.group is not None and self.room is not None:
            self.group.receive(self.room[:num_tokens], source=self.place.previous)

    def send(self, hidden_TE: Tensor) -> None:
        """Behind it: to the stage that comes next."""
        if self.group is not None and not self.scores:
            self.group.send(hidden_TE, to=self.place.next)

    def told(self, x: Tensor) -> Tensor:
        """What a rank that chooses has found; on the others x is overwritten by it."""
        if self.group is None or not x.numel():
            return x
        return self.group.broadcast(x.contiguous(), source=self.place.chooser)

    def told_all(self, found: Found) -> Found:
        """The same of log-probabilities."""
        chosen, top_ids, top = found
        return self.told(chosen), self.told(top_ids), self.told(top)


ONE_STAGE = Relay()
