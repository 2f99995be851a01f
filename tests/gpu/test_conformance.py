"""The CUDA backend conforms, by the kit that any backend is checked with; and at shapes that the kit does not try."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import takewhile

import pytest

from mainspring.backends.cuda import CudaBackend
from mainspring.core.backend import Capabilities, Device
from mainspring.core.config import EngineConfig
from mainspring.core.conformance.attention import AttentionChecks
from mainspring.core.conformance.checks import check_backend

BACKEND = CudaBackend()


def capabilities() -> Capabilities:
    devices = BACKEND.devices()
    assert isinstance(devices, list)
    return BACKEND.capabilities(devices[0])


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    opened = BACKEND.open(0, 0, 1, EngineConfig(model="none"))
    yield opened
    opened.close()


def test_conforms() -> None:
    report = check_backend(BACKEND)
    assert report.ok, [problem for finding in report.findings for problem in finding.problems]
    native = {finding.subject for finding in report.findings if finding.cases and finding.origin == "native"}
    assert {"rms_norm", "add_rms_norm", "rope", "silu_mul", "kv_write", "attention", "sample"} <= native
    assert {"attention, sliding window", "attention, softcap", "attention, sinks"} <= native


@pytest.mark.parametrize("head_dim", [80, 96, 256])
def test_attention_takes_other_head_dims(device: Device, head_dim: int) -> None:
    narrowed = replace(capabilities(), head_dims=(head_dim,), block_sizes=(16,), compute_dtypes=("bfloat16",))
    findings = AttentionChecks(device, replace(narrowed, kv_dtypes=("bfloat16",))).findings()
    for finding in takewhile(lambda finding: finding.subject.startswith("attention"), findings):
        assert finding.cases
        assert finding.ok, finding.problems
