"""By what names torch reaches a vendor's devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any


@dataclass(frozen=True, slots=True)
class Runtime:
    """A family of devices inside torch."""

    kind: str
    """Of `torch.device`."""
    module: ModuleType
    """`torch.<kind>`: streams, events, memory, pools of graphs."""
    graph: Callable[[], Any] | None
    """Makes an empty graph; None where this torch captures none."""
    capture: Mapping[str, object] = field(default_factory=dict)
    """What `capture_begin` takes besides the pool."""
    symmetric: bool = False
    """Whether ranks of one host write each other's memory (torch.distributed._symmetric_memory)."""
    lends: bool = False
    """Whether tensors can be made of an address (the CUDA Array Interface): graphs then share their results' memory."""
