"""Checks of what a backend says of itself and of its small calls: memory, events, host buffers, buckets."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mainspring.core.backend import Capabilities, Device, Verdict, unquantized
from mainspring.core.conformance.cases import limits
from mainspring.core.conformance.report import Finding
from mainspring.core.conformance.trial import Check, Trial
from mainspring.core.ops import resolve


def checks(capabilities: Capabilities) -> Iterator[Check]:
    """One for each group of calls."""
    yield Check("capabilities", lambda device: _capabilities(device, capabilities))
    yield Check("memory and events", _memory)
    yield Check("buckets", lambda device: _buckets(device, capabilities))


def _capabilities(device: Device, capabilities: Capabilities) -> Finding:
    trial = Trial("capabilities", "declared")
    trial.require("compute dtypes", bool(capabilities.compute_dtypes), "none is declared")
    sizes = capabilities.block_sizes
    trial.require("block sizes", bool(sizes) and min(sizes) > 0, f"{sizes} holds no size that a block can have")
    share = capabilities.default_memory_fraction
    trial.require("default memory fraction", 0 < share <= 1, f"{share} is no share of a device's memory")
    for dtype in capabilities.compute_dtypes:
        verdict: Verdict = device.supports(unquantized(dtype), 64, 64)
        trial.require(f"plain weights in {dtype}", verdict.ok, f"refused, and they must always work: {verdict.reason}")
    resolve(device.ops())  # an unknown name raises, and that is the finding
    trial.require("names of ops", True, "")
    captures = capabilities.graphs == "capture"
    first = device.buckets(limits(sizes[0]))
    trial.require("graphs", not captures or first is not None, "graphs are captured, but there are no buckets for them")
    return trial.finding()


def _memory(device: Device) -> Finding:
    trial = Trial("memory and events", "native")
    free, total = device.memory()
    trial.require("memory", 0 <= free <= total, f"{free:,} bytes of {total:,} are free")
    trial.require("peak", device.peak_bytes() >= 0, "a negative number of bytes")
    host = device.pinned((3, 5), torch.int32)
    shape = tuple(host.shape), host.dtype, host.device.type
    trial.require("pinned", shape == ((3, 5), torch.int32, "cpu"), f"{shape} instead of (3, 5) int32 on the host")
    numbers = torch.arange(15, dtype=torch.int32).reshape(3, 5)
    host.copy_(numbers)
    sent = host.to(device.torch_device, non_blocking=True) + 1
    event = device.event()
    event.record()
    event.synchronize()
    trial.require("event", event.query(), "not reached after synchronize()")
    back = device.pinned((3, 5), torch.int32)
    back.copy_(sent, non_blocking=True)
    device.synchronize()
    trial.require("synchronize", torch.equal(back, numbers + 1), "what was copied before it is not there after it")
    key = device.artifact_key()
    trial.require("artifact key", key == device.artifact_key(), f"{key!r} is another one when asked again")
    return trial.finding()


def _buckets(device: Device, capabilities: Capabilities) -> Finding:
    """Sound for large limits and for small ones, and the same when asked again."""
    own = type(device).buckets is not Device.buckets
    trial = Trial("buckets", "native" if own else "default")
    for size in (1, capabilities.block_sizes[0], 256):
        wanted = limits(size)
        found = device.buckets(wanted)
        trial.require(f"for {wanted}", found == device.buckets(wanted), "others when asked again")
        if found is None:
            missing = capabilities.shapes == "bucketed"
            trial.require(f"for {wanted}", not missing, "shapes are declared bucketed, and there are no buckets")
            continue
        for problem in found.check():
            trial.refuse(f"for {wanted}", problem)
        whole = capabilities.shapes == "dynamic" or bool(found.prefill)
        trial.require(f"for {wanted}", whole, "shapes are declared bucketed, and prefills have no buckets")
    return trial.finding("" if own else "any shape")
