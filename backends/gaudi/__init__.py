"""The Gaudi backend: Intel Gaudi through Habana's bridge to torch. Every step has the shape of a bucket.

`vendor` is the only place that knows habana_frameworks, `cards` what hangs on the PCI bus, `attention` flat paged
attention for decodes, `fp8` linear layers in eight bits, `graphs` captured HPU graphs in lazy mode. Buckets, cache and
prefills are `backends/bucketed`'s. Here is the hook and nothing else; torch is imported when a device is opened.
"""

from __future__ import annotations

from collections.abc import Iterable

from mainspring.backends.gaudi.device import GaudiBackend
from mainspring.core.backend import Backend
from mainspring.core.plugins import hookimpl

__all__ = ["GaudiBackend", "mainspring_backends"]


@hookimpl
def mainspring_backends() -> Iterable[Backend]:
    """The one backend of this plugin."""
    return (GaudiBackend(),)
