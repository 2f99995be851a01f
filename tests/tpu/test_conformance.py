"""The TPU backend conforms, compiled by XLA for the host."""

from __future__ import annotations

from mainspring.backends.tpu import TpuBackend
from mainspring.core.conformance.checks import check_backend


def test_conforms() -> None:
    report = check_backend(TpuBackend())
    assert report.ok, [problem for finding in report.findings for problem in finding.problems]
    native = {finding.subject for finding in report.findings if finding.cases and finding.origin == "native"}
    assert {"attention", "attention, sliding window", "attention, softcap", "attention, sinks", "kv_write"} <= native
