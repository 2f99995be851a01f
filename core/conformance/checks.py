"""All checks of one backend or one opened device, in one report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import torch

from mainspring.core.backend import Backend, Capabilities, Device, DeviceInfo, Unavailable
from mainspring.core.config import EngineConfig
from mainspring.core.conformance import elementwise, linear, sampling
from mainspring.core.conformance.attention import AttentionChecks
from mainspring.core.conformance.report import Finding, Report
from mainspring.core.errors import BackendError
from mainspring.core.ops import Ops

CHECKED = frozenset(elementwise.CASES) | sampling.CHECKED | {"attention", "kv_write"}


def check_backend(backend: Backend, index: int = 0) -> Report:
    """Opens a device and checks it. A backend that brings its own executor has no ops to check, and the report says so.

    Raises `BackendError` when the device cannot be had.
    """
    info = device_info(backend, index)
    name = f"{info.name} ({info.arch})"
    if type(backend).executor is not Backend.executor:
        finding = Finding(subject="ops", origin="unchecked", note="not applicable: its executor owns the model")
        return Report(backend=backend.name, device=name, findings=(finding,))
    device = backend.open(index, 0, 1, EngineConfig(model="conformance", backend=backend.name))
    try:
        findings = tuple(check_device(device, backend.capabilities(info)))
    finally:
        device.close()
    return Report(backend=backend.name, device=name, findings=findings)


def check_device(device: Device, capabilities: Capabilities) -> Iterator[Finding]:
    """Every finding about an open device, in the order of the report."""
    with torch.inference_mode():
        yield from elementwise.findings(device, capabilities)
        yield from AttentionChecks(device, capabilities).findings()
        yield from linear.findings(device, capabilities)
        yield from sampling.findings(device)
    overrides = device.ops()
    for op in fields(Ops):
        if op.name not in CHECKED:
            origin = "own, without a check here" if op.name in overrides else "falls back to the reference"
            yield Finding(subject=op.name, origin="unchecked", note=origin)


def device_info(backend: Backend, index: int) -> DeviceInfo:
    """The device to check. Raises `BackendError` with the reason and the remedy."""
    found = backend.devices()
    if isinstance(found, Unavailable):
        raise BackendError(f"backend {backend.name!r} is unavailable: {found.reason}; {found.remedy}")
    for info in found:
        if info.index == index:
            return info
    have = ", ".join(str(info.index) for info in found)
    raise BackendError(f"backend {backend.name!r} has no device {index}; it has {have}")
