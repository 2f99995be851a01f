"""The Gaudi backend conforms on its stand-in: the ops are the same in both modes, so `STANDIN=gaudi` alone."""

from __future__ import annotations

import pytest

from mainspring.core.conformance.checks import check_backend
from tests.standins.habana import Float32StandIn, bridge

pytestmark = pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")


def test_conforms() -> None:
    report = check_backend(Float32StandIn(), address="tests.standins.habana:GaudiStandIn")
    assert report.ok, [problem for finding in report.findings for problem in finding.problems]
    assert "stand-in" in report.device
    assert report.level == "L2"
    native = {finding.subject for finding in report.findings if finding.cases and finding.origin == "native"}
    assert {"attention", "attention, sliding window", "attention, softcap", "attention, sinks", "kv_write"} <= native
    asked = bridge().recorder.calls
    assert {"FusedSDPA.apply", "hpu::block_softmax", "hpu::fp8_gemm_v2"} <= asked.keys()
