"""Rules out the last few tokens, so that nothing is said again at once. Legend: that of the contract."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from mainspring.core.processors.contract import LogitsProcessor, ProcessedRows
from mainspring.core.request import Parameter


class NoEcho(LogitsProcessor):
    """The last `window` tokens, of the prompt or the answer, are impossible."""

    parameters: ClassVar[tuple[Parameter, ...]] = (Parameter("window", "integer", minimum=1, maximum=16, default=4),)
    history: ClassVar[int] = 16

    def process(self, logits_PV: Tensor, rows: ProcessedRows) -> Tensor:
        age_H = torch.arange(self.history, 0, -1, device=logits_PV.device)
        fresh_PH = (age_H <= rows.parameters["window"][:, None]) & (rows.previous >= 0)
        change_PH = torch.where(fresh_PH, float("-inf"), 0.0)
        return logits_PV.scatter_add_(1, rows.previous.clamp(min=0).long(), change_PH)
