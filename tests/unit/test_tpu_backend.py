"""The TPU backend where there is no TPU: what it says of chips and software, its buckets, its numbers on the host."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pluggy
import pytest
import torch
from rich.console import Console

from mainspring.backends.bucketed.ladders import PREFILL_ROWS, ladders, read_ladders
from mainspring.backends.tpu.chips import CHIPS, Chip, chips
from mainspring.backends.tpu.device import TpuBackend, TpuDevice
from mainspring.backends.tpu.vendor import HOST_ARCH, TorchTpu, TorchXla, Vendor, find
from mainspring.core import commands
from mainspring.core.backend import DeviceInfo, ShapeLimits, Unavailable
from mainspring.core.config import EngineConfig
from mainspring.core.conformance.attention import AttentionChecks
from mainspring.core.errors import BackendError
from mainspring.core.plugins import Plugins
from mainspring.core.request import SamplingParams
from tests.support.host_vendor import HostVendor
from tests.support.in_process import open_in_process
from tests.support.tiny_models import CASES, build, reference_greedy, save, sequence

V5E = CHIPS["0x0063"]
LIMITS = ShapeLimits(tokens=100, sequences=20, blocks=40)


def backend(*found: Chip, packages: str = "torch torch_tpu torch_xla", **settings: str) -> TpuBackend:
    def look(seen: list[Chip]) -> tuple[Vendor, bool]:
        return find(seen, settings, lambda package: package in packages.split() or None)

    return TpuBackend(lambda: list(found), look)


def test_chips_are_what_the_bus_says(tmp_path: Path) -> None:
    for place, vendor, device in (("0", "0x1ae0", "0x0063"), ("1", "0x10de", "0x0063"), ("2", "0x1ae0", "0xffff")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "vendor").write_text(f"{vendor}\n")
        (tmp_path / place / "device").write_text(f"{device}\n")
    (tmp_path / "3").mkdir()
    assert chips(tmp_path) == [V5E]
    assert chips(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("packages", "settings", "vendor", "real"),
    [
        ("torch torch_tpu torch_xla", {}, TorchTpu, True),
        ("torch torch_xla", {}, TorchXla, True),
        ("torch torch_tpu torch_xla", {"PJRT_DEVICE": "CPU"}, TorchXla, False),
    ],
    ids=["native first", "legacy", "host"],
)
def test_vendors_are_probed_in_order(packages: str, settings: Mapping[str, str], vendor: type, real: bool) -> None:
    found, on_chips = find([V5E], settings, lambda package: package in packages.split() or None)
    assert (type(found), on_chips) == (vendor, real)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (backend(V5E, packages=""), "torch is not installed"),
        (backend(V5E, packages="torch"), "neither torch_tpu nor torch_xla is installed"),
        (backend(packages="torch"), "neither torch_tpu nor torch_xla is installed, and the machine shows no TPU"),
        (backend(), "torch_tpu is installed, but the machine shows no TPU"),
        (backend(packages="torch torch_tpu", PJRT_DEVICE="CPU"), "neither torch_tpu nor torch_xla is installed"),
    ],
    ids=["no torch", "no software", "nothing", "no chip", "no torch_xla for the host"],
)
def test_what_is_missing_is_said_with_the_remedy(given: TpuBackend, reason: str) -> None:
    found = given.devices()
    assert isinstance(found, Unavailable)
    assert reason in found.reason
    assert "pip install 'mainspring[tpu]'" in found.remedy
    with pytest.raises(BackendError, match=r"mainspring\[tpu\]"):
        given.open(0, 0, 1, EngineConfig(model="none"))


def test_the_remedy_is_shown_as_it_must_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Plugins(pluggy.PluginManager("mainspring"), {"tpu": backend(packages="torch")})
    monkeypatch.setattr(commands, "load_plugins", lambda: found)
    shown = io.StringIO()
    assert commands.backends(Console(file=shown, width=400)) == 0
    assert "pip install 'mainspring[tpu]'" in shown.getvalue()


def test_devices_are_chips_or_the_host() -> None:
    assert backend(V5E, V5E).devices() == [DeviceInfo(i, "TPU v5e", "v5e", 16 << 30) for i in range(2)]
    (host,) = backend(PJRT_DEVICE="CPU").devices()
    assert host.arch == HOST_ARCH


@pytest.mark.parametrize(
    ("arch", "dtype", "verified"), [("v5e", "bfloat16", "L3"), ("v4", "bfloat16", "L0"), (HOST_ARCH, "float32", "L2")]
)
def test_no_chip_is_called_verified_on_hardware(arch: str, dtype: str, verified: str) -> None:
    declared = backend().capabilities(DeviceInfo(0, "", arch, 1))
    assert declared.compute_dtypes[0] == dtype
    assert declared.verified == verified
    assert (declared.shapes, declared.mixes_prefill_and_decode) == ("bucketed", False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode_row": "8"}, "did you mean 'decode_rows'"),
        ({"decode_rows": "8,4"}, "decode_rows=8,4 must be rows of a decode step, rising"),
        ({"blocks": "many"}, "blocks=many must be"),
        ({"prefill_tokens": "0,4"}, "must be tokens of a prefill step"),
    ],
)
def test_options_are_checked_before_the_runtime_starts(options: dict[str, str], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        backend(V5E).open(0, 0, 1, EngineConfig(model="none", backend_options=options))


@pytest.mark.parametrize("limits", [LIMITS, ShapeLimits(1, 1, 1), ShapeLimits(2048, 256, 256)], ids=str)
def test_ladders_end_at_the_limits_and_hold_every_step(limits: ShapeLimits) -> None:
    buckets = ladders(limits, {})
    assert buckets.check() == []
    assert len(set(buckets.decode)) == len(buckets.decode)
    for rows in range(1, limits.sequences + 1):
        assert buckets.smallest(rows, rows, limits.blocks, decode=True) is not None
    rows = min(PREFILL_ROWS, limits.sequences)
    assert buckets.smallest(limits.tokens, rows, limits.blocks, decode=False) is not None


def test_ladders_by_hand() -> None:
    buckets = ladders(LIMITS, read_ladders({"decode_rows": "4,16,64", "blocks": "40", "prefill_tokens": "50"}))
    assert [bucket.sequences for bucket in buckets.decode] == [4, 16, 20]
    assert [(bucket.tokens, bucket.blocks) for bucket in buckets.prefill] == [(50, 40), (100, 40)]


def test_conforms_on_the_host() -> None:
    declared = backend(PJRT_DEVICE="CPU").capabilities(DeviceInfo(0, "", HOST_ARCH, 1))
    narrowed = replace(declared, compute_dtypes=("float32",), kv_dtypes=("float32",), block_sizes=(16,))
    with torch.inference_mode():
        findings = list(AttentionChecks(TpuDevice(HostVendor(), 0, {}), narrowed).findings())
    assert [problem for finding in findings for problem in finding.problems] == []
    native = {finding.subject for finding in findings if finding.origin == "native" and finding.cases}
    assert {"attention", "attention, sliding window", "attention, softcap", "attention, sinks", "kv_write"} <= native


@pytest.mark.parametrize("traces", [False, True], ids=["plain", "one graph"])
def test_a_generation_is_transformers_and_every_step_a_bucket_s(
    traces: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TpuBackend, "devices", lambda self: [DeviceInfo(0, "the host", HOST_ARCH, 4 << 30)])
    model = build(CASES["llama"].config())
    vendor = HostVendor(traces=traces)
    config = EngineConfig(
        model=str(save(model, tmp_path)), backend="tpu", dtype="float32", max_length=60, max_sequences=4,
        max_batch_tokens=16, num_blocks=40, block_size=16,
    )  # fmt: skip
    served = open_in_process(config, TpuDevice(vendor, 0, {"decode_rows": (4,), "prefill_tokens": (16,)}))
    buckets = served.executor.buckets()
    assert buckets is not None
    assert vendor.compiled == len(buckets.decode) + len(buckets.prefill)
    prompt = sequence()
    for _ in range(2):  # the second time out of the prefix cache
        first, second = served.generate([prompt, prompt[:9]], SamplingParams(max_tokens=12, ignore_eos=True))
        assert first == reference_greedy(model, prompt, 12)
        assert second == reference_greedy(model, prompt[:9], 12)
    assert {batch.bucket for batch in served.batches} <= {*buckets.decode, *buckets.prefill}
    assert vendor.compiled == len(buckets.decode) + len(buckets.prefill)
    served.executor.close()
