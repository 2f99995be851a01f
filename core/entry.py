"""One tensor of a checkpoint, as its readers list it."""

from __future__ import annotations

from dataclasses import dataclass

from mainspring.core.layers.weights import Shape


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a checkpoint."""

    stored: str
    """Its name there."""
    shape: Shape
    """As the model will see it."""
    num_bytes: int
    """On disk, for progress; a rough figure where the format does not say."""
