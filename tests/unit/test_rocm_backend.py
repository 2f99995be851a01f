"""The ROCm backend where there is no GPU: what it reads of the driver, says of chips, and tells who has none."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from mainspring.backends.rocm import RocmBackend
from mainspring.backends.rocm.chips import CHIPS
from mainspring.backends.rocm.driver import Gpu, gpus, visible
from mainspring.core.backend import DeviceInfo, Unavailable
from mainspring.core.config import EngineConfig
from mainspring.core.errors import BackendError

MI300 = Gpu("gfx942", 192 << 30, 304, "GPU-000000000000002a")
VEGA = Gpu("gfx900", 8 << 30, 64, "")


def node(folder: Path, number: int, properties: str, *banks: str) -> None:
    """A node of the driver's topology."""
    place = folder / str(number)
    place.mkdir()
    (place / "properties").write_text(properties)
    for index, bank in enumerate(banks):
        (place / "mem_banks" / str(index)).mkdir(parents=True)
        (place / "mem_banks" / str(index) / "properties").write_text(bank)


def test_gpus_are_read_from_the_driver_s_topology(tmp_path: Path) -> None:
    node(tmp_path, 0, "cpu_cores_count 64\nsimd_count 0\ngfx_target_version 0\n")
    properties = "simd_count 1216\nsimd_per_cu 4\ngfx_target_version 90402\nunique_id 42\n"
    node(tmp_path, 10, "simd_count 416\nsimd_per_cu 4\ngfx_target_version 90010\n")
    node(tmp_path, 2, properties, f"heap_type 1\nsize_in_bytes {192 << 30}\n", "heap_type 0\nsize_in_bytes 9\n")
    assert gpus(tmp_path) == [MI300, Gpu("gfx90a", 0, 104, "")]
    assert gpus(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("switches", "shown"),
    [
        ({}, [MI300, VEGA]),
        ({"HIP_VISIBLE_DEVICES": "1,0"}, [VEGA, MI300]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, [MI300]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"ROCR_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "0"}, [VEGA]),
        ({"HIP_VISIBLE_DEVICES": "7"}, []),
        ({"ROCR_VISIBLE_DEVICES": "GPU-000000000000002a"}, [MI300, VEGA]),
    ],
)
def test_hip_s_own_switches_are_honoured(switches: dict[str, str], shown: list[Gpu]) -> None:
    assert visible([MI300, VEGA], switches) == shown


@pytest.mark.parametrize(
    ("found", "missing", "reason", "remedy"),
    [
        ([], "", "the amdgpu driver shows no GPU", "/dev/kfd"),
        ([VEGA], "", "kernels were not compiled for gfx900", "gfx90a"),
        ([MI300], "torch is not installed", "torch is not installed", "ROCm build"),
    ],
)
def test_what_is_unavailable_says_why_and_what_to_do(found: list[Gpu], missing: str, reason: str, remedy: str) -> None:
    answer = RocmBackend(lambda: found, lambda: missing).devices()
    assert isinstance(answer, Unavailable)
    assert answer.reason == reason
    assert remedy in answer.remedy


def test_without_rocm_the_answer_comes_at_once() -> None:
    began = time.perf_counter()
    answer = RocmBackend().devices()
    assert time.perf_counter() - began < 1
    assert isinstance(answer, Unavailable)


def test_a_gpu_keeps_hip_s_index() -> None:
    answer = RocmBackend(lambda: [VEGA, MI300], lambda: "").devices()
    assert answer == [DeviceInfo(1, "AMD GPU gfx942", "gfx942", 192 << 30, "GPU-000000000000002a")]


def test_no_gpu_has_run_it_and_it_says_so() -> None:
    for arch in CHIPS:
        assert RocmBackend().capabilities(DeviceInfo(0, "x", arch, 1)).verified == "L4"


def test_formats_of_8_bits_are_those_of_the_chip() -> None:
    formats = {arch: chip.fp8 for arch, chip in CHIPS.items()}
    assert formats == {
        "gfx90a": None, "gfx942": "float8_e4m3fnuz", "gfx950": "float8_e4m3fn", "gfx1100": None,
        "gfx1201": "float8_e4m3fn",
    }  # fmt: skip


def test_a_torch_without_rocm_is_refused_with_its_version() -> None:
    with pytest.raises(BackendError, match=r"cannot use ROCm here; install torch's ROCm build"):
        RocmBackend().open(0, 0, 1, EngineConfig(model="m"))
    assert torch.version.hip is None
