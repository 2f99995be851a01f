"""How a token is drafted: as the target will choose at that place, with the same temperature, truncation and noise.

The noise is a function of seed, position and token alone, so target and drafter draw from what is nearly the same
distribution by nearly the same rule, and agree as often as two coupled draws can (Daliri et al. 2024, "Coupling without
Communication and Drafter-Invariant Speculative Decoding"). Penalties, biases, processors and grammars are the target's
alone: a draft that they rule out is a draft that is wrong.

Legend: R rows that draft, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mainspring.core.execution.sampling import Rows, SamplingTable
from mainspring.core.execution.upload import Upload
from mainspring.core.ops import Ops
from mainspring.core.ops.sample import SamplingTensors


class Drawing:
    """Sampling parameters of the rows that draft, on the device, kept while the same rows do."""

    def __init__(self, sampling: SamplingTable, ops: Ops, upload: Upload, *, partition: bool = True) -> None:
        self._sampling, self._ops, self._upload, self._partition = sampling, ops, upload, partition
        self._kept: tuple[tuple[int, bytes], SamplingTensors] | None = None

    def of(self, rows: Rows, admissions: int) -> SamplingTensors:
        """How these rows of the state table choose; `admissions` counts those that the table has seen."""
        key = (admissions, rows.tobytes())
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self._sampling.drawn(rows, self._upload, partition=self._partition))
        return self._kept[1]

    def draw(self, scores_RV: Tensor, sampling: SamplingTensors, positions_R: Tensor) -> Tensor:
        """[R] int32: the tokens drafted for these positions."""
        return self._ops.sample(scores_RV, replace(sampling, position=positions_R))
