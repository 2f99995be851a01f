"""Which weights of a quantized checkpoint stay as they are: those that the device takes under a scheme of theirs.

The others are dequantized as they are read, which costs memory and not the model: it is said once for each reason.
"""

from __future__ import annotations

import logging

from mainspring.core.backend import Device, WeightScheme
from mainspring.core.checkpoints import Checkpoint
from mainspring.core.layers.weights import Cut, Stored, Use

_log = logging.getLogger(__name__)


class Keeping:
    """`ReadStored` for one checkpoint and one device."""

    def __init__(self, checkpoint: Checkpoint, device: Device) -> None:
        self._checkpoint = checkpoint
        self._device = device
        self._told: set[str] = set()

    def __call__(self, name: str, cut: Cut, use: Use) -> Stored | None:
        """The weight under the first of its schemes that the device takes."""
        out_features, in_features = self._checkpoint.entries[name].shape
        first, past = cut.columns or (0, in_features)
        shape = (past - first, cut.num_rows or out_features)
        reasons = []
        for scheme in self._checkpoint.schemes(name, cut):
            refusal = self._refusal(scheme, shape, use)
            if refusal is None:
                return Stored(scheme, self._checkpoint.read_stored(name, cut))
            reasons.append(refusal)
        if reasons and reasons[-1] not in self._told:
            self._told.add(reasons[-1])
            _log.info("weights like %s are dequantized while they load: %s", name, reasons[-1])
        return None

    def _refusal(self, scheme: WeightScheme, shape: tuple[int, int], use: Use) -> str | None:
        verdict = self._device.supports(scheme, *shape)
        if not verdict.ok:
            return verdict.reason
        if use == "rows" and not self._device.reads_rows(scheme):
            return f"this backend reads no rows of a table in {scheme}"
        return None
