"""The Neuron backend: AWS Trainium and Inferentia. Every step has the shape of a bucket, and is compiled once.

`vendor` is the only place that knows torch_neuronx, torch_xla and nki, `chips` what hangs on the PCI bus, `artifacts`
where compiled programs are kept. Buckets, cache and attention are `backends/bucketed`'s. Who lets a compiler own the
whole model (NxD Inference) overrides `Backend.executor` instead, in a plugin of his own. Here is the hook and nothing
else; torch is imported when a device is opened, or when a package must show that it is not AWS's placeholder.
"""

from __future__ import annotations

from collections.abc import Iterable

from mainspring.backends.neuron.device import NeuronBackend
from mainspring.core.backend import Backend
from mainspring.core.plugins import hookimpl

__all__ = ["NeuronBackend", "mainspring_backends"]


@hookimpl
def mainspring_backends() -> Iterable[Backend]:
    """The one backend of this plugin."""
    return (NeuronBackend(),)
