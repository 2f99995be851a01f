"""The TPU backend: Google's TPUs through XLA. Every step has the shape of a bucket, and is compiled once.

`vendor` is the only place that knows torch_tpu and torch_xla, `chips` what hangs on the PCI bus, `pallas_attention` the
kernel for decodes on a real chip. Buckets, the paged cache in static shapes and composed attention are
`backends/bucketed`'s. Here is the hook and nothing else; torch is imported when a device is opened.
"""

from __future__ import annotations

from collections.abc import Iterable

from mainspring.backends.tpu.device import TpuBackend
from mainspring.core.backend import Backend
from mainspring.core.plugins import hookimpl

__all__ = ["TpuBackend", "mainspring_backends"]


@hookimpl
def mainspring_backends() -> Iterable[Backend]:
    """The one backend of this plugin."""
    return (TpuBackend(),)
