"""The XPU backend where there is no GPU: what it reads of the bus, declares, and tells who has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from mainspring.backends.xpu import XpuBackend
from mainspring.backends.xpu.driver import PRODUCTS, gpus
from mainspring.core.backend import DeviceInfo, Unavailable
from mainspring.core.config import EngineConfig
from mainspring.core.errors import BackendError


def test_known_products_are_found_on_the_bus(tmp_path: Path) -> None:
    products = ((0, "0x8086", "0x0bd5"), (1, "0x8086", "0x1234"), (2, "0x10de", "0x56a0"), (3, "0x8086", "0x56a0"))
    for place, vendor, product in products:
        (tmp_path / str(place)).mkdir()
        (tmp_path / str(place) / "vendor").write_text(f"{vendor}\n")
        (tmp_path / str(place) / "device").write_text(f"{product}\n")
    assert gpus(tmp_path) == [PRODUCTS["0x0bd5"], PRODUCTS["0x56a0"]]
    assert gpus(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("missing", "reason", "remedy"),
    [
        ("", "the PCI bus shows no Intel GPU that is known here", "/dev/dri"),
        ("torch is not installed", "torch is not installed", "XPU build"),
    ],
)
def test_what_is_unavailable_says_why_and_what_to_do(missing: str, reason: str, remedy: str) -> None:
    answer = XpuBackend(list, lambda: missing).devices()
    assert isinstance(answer, Unavailable)
    assert answer.reason == reason
    assert remedy in answer.remedy


def test_what_was_not_compiled_for_is_called_detected() -> None:
    backend = XpuBackend()
    levels = {arch: backend.capabilities(DeviceInfo(0, "x", arch, 1)).verified for arch in ("pvc", "dg2", "bmg")}
    assert levels == {"pvc": "L4", "dg2": "L4", "bmg": "L0"}


def test_a_torch_without_xpu_is_refused_with_its_version() -> None:
    with pytest.raises(BackendError, match=r"cannot use an XPU here; install torch's XPU build"):
        XpuBackend().open(0, 0, 1, EngineConfig(model="m"))
