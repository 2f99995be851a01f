"""All checks of one backend or one opened device, in one report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from datetime import UTC, datetime

import msgspec
import torch

import mainspring
from mainspring.core.backend import Backend, Capabilities, Device, DeviceInfo, ProgressCallback, Unavailable
from mainspring.core.config import EngineConfig
from mainspring.core.conformance import (
    attention,
    blocks,
    collectives,
    elementwise,
    heads,
    identity,
    large,
    linear,
    model,
    own_executor,
    quantized,
    sampling,
    speed,
)
from mainspring.core.conformance.report import Finding, Report
from mainspring.core.conformance.trial import Check
from mainspring.core.errors import BackendError, unknown
from mainspring.core.ops import Ops

CHECKED = frozenset(elementwise.CASES) | sampling.CHECKED | {"attention", "kv_write", heads.SUBJECT}


def check_backend(
    backend: Backend,
    index: int = 0,
    *,
    address: str = "",
    only: Sequence[str] = (),
    timed: bool = False,
    progress: ProgressCallback = lambda phase, done, total: None,
) -> Report:
    """Opens a device and checks it, against `only` some subjects or all. `timed` measures how fast ops are, too.

    A backend that brings its own executor has no ops to check; what can be said of an executor is checked then.
    `address` is what ranks in other processes find the backend by (`find_backend`); empty: by its class. `progress` is
    told the subject that comes next.
    Raises `BackendError` when the device cannot be had, and for a subject that does not exist.
    """
    info = device_info(backend, index)
    capabilities = backend.capabilities(info)
    name = f"{info.name} ({info.arch})"
    if type(backend).executor is not Backend.executor:
        return _report(backend, name, capabilities, own_executor.findings(backend, info, capabilities), "")
    chosen = select(all_checks(backend, capabilities, address), only)
    device = backend.open(index, 0, 1, EngineConfig(model="conformance", backend=backend.name))
    try:
        findings = run(chosen, device, progress)
        if not only:
            findings += list(_unchecked(device))
        if timed:
            timings = speed.timings(device, capabilities)
            findings = [msgspec.structs.replace(finding, timing=timings.get(finding.subject)) for finding in findings]
        artifacts = device.artifact_key()
    finally:
        device.close()
    return _report(backend, name, capabilities, findings, artifacts)


def check_device(device: Device, capabilities: Capabilities, only: Sequence[str] = ()) -> list[Finding]:
    """Every finding about an open device, in the order of the report."""
    findings = run(select(tuple(checks(capabilities)), only), device)
    return findings if only else [*findings, *_unchecked(device)]


def all_checks(backend: Backend, capabilities: Capabilities, address: str = "") -> tuple[Check, ...]:
    """What a backend with ops is checked for, in the order of the report: collectives start processes of their own."""
    return (*checks(capabilities), collectives.check(backend, capabilities, address))


def checks(capabilities: Capabilities) -> Iterator[Check]:
    """All that one open device is checked for, by what it declares."""
    yield from identity.checks(capabilities)
    yield from elementwise.checks(capabilities)
    yield from attention.checks(capabilities)
    yield from heads.checks(capabilities)
    yield from large.checks(capabilities)
    yield from linear.checks(capabilities)
    yield from quantized.checks(capabilities)
    yield from blocks.checks(capabilities)
    yield from sampling.checks(capabilities)
    yield from model.checks(capabilities)


def select(all_checks: Sequence[Check], only: Sequence[str]) -> list[Check]:
    """Those whose subject is, or begins with, one of the names; all when there are none.

    Raises `BackendError` for a name that no subject has, with the nearest.
    """
    subjects = [check.subject for check in all_checks]
    wrong = [name for name in only if not any(_named(subject, name) for subject in subjects)]
    if wrong:
        raise BackendError([unknown("check", name, subjects) for name in wrong])
    return [check for check in all_checks if not only or any(_named(check.subject, name) for name in only)]


def run(
    chosen: Sequence[Check], device: Device, progress: ProgressCallback = lambda phase, done, total: None
) -> list[Finding]:
    """Each check's finding."""
    found = []
    with torch.inference_mode():
        for done, check in enumerate(chosen):
            progress(check.subject, done, len(chosen))
            found.append(outcome(check, device))
    return found


def outcome(check: Check, device: Device) -> Finding:
    """A check's finding, also where the device raises before any case of it has run."""
    try:
        return check.run(device)
    except Exception as error:  # noqa: BLE001  whatever a backend under test raises is a finding about it
        return Finding(subject=check.subject, origin="native", problems=(f"raised {type(error).__name__}: {error}",))


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


def _named(subject: str, name: str) -> bool:
    return subject == name or subject.startswith((f"{name},", f"{name} "))


def _unchecked(device: Device) -> Iterator[Finding]:
    overrides = device.ops()
    for op in fields(Ops):
        if op.name not in CHECKED:
            origin = "own, without a check here" if op.name in overrides else "falls back to the reference"
            yield Finding(subject=op.name, origin="unchecked", note=origin)


def _report(
    backend: Backend, device: str, capabilities: Capabilities, findings: Sequence[Finding], artifacts: str
) -> Report:
    return Report(
        backend=backend.name,
        device=device,
        findings=tuple(findings),
        level=capabilities.verified,
        version=mainspring.__version__,
        torch=str(torch.__version__),
        artifacts=artifacts,
        date=datetime.now(UTC).date().isoformat(),
    )
