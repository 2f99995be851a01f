"""What a speculator is, from its files alone: a smaller model, or heads that read the target's hidden states.

No weight is read and nothing here imports torch, because the start-up plan is made of this. `configs` says what there
is, `reading` tells which of them a directory holds, `names` what tensors are called. The modules themselves are in
`core/models/drafts`, and how they run behind the target in `core/execution/drafters`.
"""

from __future__ import annotations

from mainspring.core.architectures.speculators.configs import (
    DraftModelConfig,
    Eagle3Config,
    EagleConfig,
    MedusaConfig,
    MLPSpeculatorConfig,
    SpeculatorConfig,
    cached_model,
    mismatches,
    taps_of,
)
from mainspring.core.architectures.speculators.reading import read_speculator

__all__ = [
    "DraftModelConfig",
    "Eagle3Config",
    "EagleConfig",
    "MLPSpeculatorConfig",
    "MedusaConfig",
    "SpeculatorConfig",
    "cached_model",
    "mismatches",
    "read_speculator",
    "taps_of",
]
