"""The CPU backend conforms, by the same kit and the same command that anyone's backend is checked with."""

from __future__ import annotations

import json

import pytest
import torch

from mainspring.backends.cpu import CpuBackend
from mainspring.core.conformance.__main__ import main
from mainspring.core.conformance.checks import check_backend
from mainspring.core.conformance.report import Report


@pytest.fixture(scope="module")
def report() -> Report:
    threads = torch.get_num_threads()
    try:
        return check_backend(CpuBackend(), timed=True)
    finally:
        torch.set_num_threads(threads)


def test_conforms(report: Report) -> None:
    assert report.ok, [problem for finding in report.findings for problem in finding.problems]


def test_every_override_and_scheme_was_tried(report: Report) -> None:
    backend = CpuBackend()
    devices = backend.devices()
    assert isinstance(devices, list)
    schemes = backend.capabilities(devices[0]).weight_schemes
    tried = {finding.subject for finding in report.findings if finding.cases and finding.origin == "native"}
    assert {"rms_norm", "add_rms_norm", "rope", "silu_mul", "gelu_mul", "kv_write", "attention"} <= tried
    assert {"attention, sliding window", "attention, softcap", "attention, sinks"} <= tried
    assert sum(subject.startswith(("linear, int8", "linear, int4", "linear, q")) for subject in tried) == len(schemes)


def test_ops_that_memory_bounds_are_timed(report: Report) -> None:
    timings = {finding.subject: finding.timing for finding in report.findings if finding.timing is not None}
    assert set(timings) == {"rms_norm", "add_rms_norm", "silu_mul", "gelu_mul", "linear, float32", "attention"}
    assert all(timing.seconds > 0 and timing.roofline > 0 for timing in timings.values())


def test_every_tolerance_has_its_reason(report: Report) -> None:
    assert [f.subject for f in report.findings if f.tolerance and not f.reason] == []


def test_float32_is_exact_to_rounding(report: Report) -> None:
    exact = {"attention, sliding window", "attention, softcap", "attention, sinks", "kv_write", "copy_blocks"}
    errors = {finding.subject: finding.error for finding in report.findings if finding.subject in exact}
    assert set(errors) == exact
    assert max(errors.values()) < 2e-6


def test_command_prints_json_and_exits_zero(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cpu", "--json", "--only", "rope", "--only", "attention"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"]
    assert document["backend"] == "cpu"
    assert all(finding["ok"] for finding in document["findings"])


def test_command_names_the_nearest_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cpuu"]) == 71
    assert "did you mean 'cpu'" in capsys.readouterr().err
