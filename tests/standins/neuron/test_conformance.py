"""The Neuron backend conforms on its stand-in: the ops are the same in both ways, so `STANDIN=neuron` alone."""

from __future__ import annotations

from mainspring.core.conformance.checks import check_backend
from tests.standins.aws import NeuronStandIn, runtime


def test_conforms() -> None:
    report = check_backend(NeuronStandIn(), address="tests.standins.aws:NeuronStandIn")
    assert report.ok, [problem for finding in report.findings for problem in finding.problems]
    assert "stand-in" in report.device
    assert report.level == "L2"
    native = {finding.subject for finding in report.findings if finding.cases and finding.origin == "native"}
    assert {"attention", "attention, sliding window", "attention, softcap", "attention, sinks", "kv_write"} <= native
    assert runtime().device.calls["scaled_dot_product_attention"]
