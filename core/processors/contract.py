"""What a logits processor is: a class that plugins name in the hook `mainspring_logits_processors`.

A processor sees all rows of a step that asked for it at once, on the device, and never the requests themselves: of each
row the numbers that its request gave and the last tokens of its sequence. It keeps nothing between calls. What it
computes is thus a function of the sequence alone: the same after a preemption, in any company, and while the host plans
a step ahead.

Legend: P rows of a step that asked for the processor, V vocabulary, H tokens of history that it declared.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from mainspring.core.request import Parameter


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessedRows:
    """The rows that asked, on the device."""

    parameters: Mapping[str, Tensor]
    """[P] each, by the parameter's name: float32, or int32 for integers."""
    previous: Tensor
    """[P, H] int32: the last `history` tokens, prompt and output alike, the newest last; -1 before the beginning."""
    position: Tensor
    """[P] int32: where in its sequence the token that is being chosen will stand."""
    num_prompt_tokens: Tensor
    """[P] int32."""


class LogitsProcessor(ABC):
    """Made once, in the engine process.

    Ops must neither wait for the device nor depend on values in the host's control flow (no `.item()`, no boolean
    indexing): steps are enqueued ahead, and some machines compile them.
    """

    parameters: ClassVar[tuple[Parameter, ...]] = ()
    """What requests may set, in order."""
    history: ClassVar[int] = 0
    """How many of the last tokens it reads."""
    order: ClassVar[int] = 0
    """Lower ones go first; those of one number by name."""

    def __init__(self, vocab_size: int) -> None:
        """Tables of the vocabulary's size are best made here."""
        self.vocab_size = vocab_size

    @abstractmethod
    def process(self, logits_PV: Tensor, rows: ProcessedRows) -> Tensor:
        """The scores to choose by, [P, V] float32; -inf rules a token out.

        `logits_PV` are after penalties, logit_bias and min_tokens, before temperature, and the callee's to overwrite.
        """
