"""What the CPU backend decides on the host: limits of containers, groups of rows, what it declares and refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mainspring.backends.cpu import CpuBackend, mainspring_backends
from mainspring.backends.cpu.device import CpuDevice
from mainspring.backends.cpu.host import Host
from mainspring.backends.cpu.schemes import INT8, INT8_DYNAMIC, verdict
from mainspring.backends.cpu.steps import WASTE_TOKENS, similar
from mainspring.core.backend import Unavailable, WeightScheme
from mainspring.core.config import EngineConfig
from mainspring.core.errors import BackendError

MIB = 1 << 20


def write(root: Path, files: dict[str, str]) -> Host:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(root)


# --- host ---


def test_memory_is_the_tightest_control_group(tmp_path: Path) -> None:
    group = "sys/fs/cgroup"
    host = write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/container\n",
            f"{group}/pod/memory.max": f"{64 * MIB}\n",
            f"{group}/pod/memory.current": f"{16 * MIB}\n",
            f"{group}/pod/container/memory.max": "max\n",
            f"{group}/pod/container/memory.current": f"{4 * MIB}\n",
            f"{group}/pod/memory.stat": f"anon 5\ninactive_file {8 * MIB}\n",
        },
    )
    assert host.memory() == (56 * MIB, 64 * MIB)


def test_memory_of_a_version_1_group(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/memory"
    host = write(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/docker/abc\n2:memory:/docker/abc\n",
            f"{group}/memory.limit_in_bytes": f"{32 * MIB}\n",
            f"{group}/memory.usage_in_bytes": f"{40 * MIB}\n",
        },
    )
    assert host.memory() == (0, 32 * MIB)


def test_memory_without_control_groups_is_the_machines(tmp_path: Path) -> None:
    free, total = Host(tmp_path).memory()
    assert 0 < free <= total == psutil.virtual_memory().total


def test_cores_respect_the_quota(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}
    assert write(tmp_path, files).cores() == 1
    assert write(tmp_path, {"sys/fs/cgroup/cpu.max": "max 100000\n"}).cores() >= 1


def test_processor_facts(tmp_path: Path) -> None:
    flags = "fpu avx avx2 avx512f avx512_vnni"
    host = write(tmp_path, {"proc/cpuinfo": f"processor : 0\nmodel name : Example 9000\nflags : {flags}\n"})
    assert host.processor() == "Example 9000"
    assert host.arch().endswith("-avx512")
    assert host.multiplies_integers()
    assert host.multiplies_bytes()
    older = write(tmp_path, {"proc/cpuinfo": "flags : fpu avx avx2\n"})
    assert older.multiplies_bytes()
    assert not older.multiplies_integers()
    assert not write(tmp_path, {"proc/cpuinfo": "flags : fpu avx\n"}).multiplies_bytes()


# --- what it declares ---


def test_listing_backends_loads_no_torch() -> None:
    code = (
        "import sys; from mainspring.backends.cpu import CpuBackend as B; "
        "b = B(); b.capabilities(b.devices()[0]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_torch_the_remedy_is_an_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = CpuBackend().devices()
    assert isinstance(found, Unavailable)
    assert "mainspring[cpu]" in found.remedy


def test_the_hook_registers_one_backend() -> None:
    assert [backend.name for backend in mainspring_backends()] == ["cpu"]


def test_integer_products_are_declared_where_the_processor_has_them(tmp_path: Path) -> None:
    old = write(tmp_path, {"proc/cpuinfo": "flags : fpu avx2\n"})
    backend = CpuBackend(old)
    devices = backend.devices()
    assert isinstance(devices, list)
    assert INT8_DYNAMIC not in backend.capabilities(devices[0]).weight_schemes
    refused = CpuDevice(old).supports(INT8_DYNAMIC, 64, 64)
    assert not refused.ok
    assert "VNNI" in refused.reason


@pytest.mark.parametrize(
    ("scheme", "in_features", "out_features", "reason"),
    [
        (INT8, 40, 64, "multiples of 16 input features, not 40"),
        (WeightScheme(weight="int4", bits=4, group_size=64), 96, 64, "do not divide into groups of 64"),
        (WeightScheme(weight="int4", bits=4, group_size=32), 96, 40, "multiples of 16 output features, not 40"),
    ],
)
def test_shapes_that_kernels_do_not_take_are_refused(
    scheme: WeightScheme, in_features: int, out_features: int, reason: str
) -> None:
    refused = verdict(scheme, in_features, out_features)
    assert not refused.ok
    assert reason in refused.reason


def test_schemes_without_a_kernel_are_refused() -> None:
    refused = CpuDevice(Host()).supports(WeightScheme(weight="nf4", bits=4, group_size=64), 64, 64)
    assert not refused.ok


# --- opening ---


def test_open_sets_threads_and_refuses_what_it_does_not_know() -> None:
    threads = torch.get_num_threads()
    try:
        CpuBackend().open(0, 0, 1, EngineConfig(model="m", threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(BackendError, match="unknown backend option 'speed'"):
        CpuBackend().open(0, 0, 1, EngineConfig(model="m", backend_options={"speed": "11"}))
    with pytest.raises(BackendError, match="--threads 0"):
        CpuBackend().open(0, 0, 1, EngineConfig(model="m", threads=0))


# --- groups of rows ---


@given(st.lists(st.integers(min_value=1, max_value=300), max_size=40), st.sampled_from([16, 32, 128]))
def test_groups_hold_every_row_once_and_waste_little(blocks: list[int], block_size: int) -> None:
    spans = dict(enumerate(blocks))
    groups = similar(spans, block_size)
    assert sorted(row for group in groups for row in group) == list(spans)
    for group in groups:
        used = sum(spans[row] for row in group)
        wasted = max(spans[row] for row in group) * len(group) - used
        assert wasted * block_size <= max(WASTE_TOKENS, used * block_size // 8)


def test_equal_rows_are_one_group_in_their_own_order() -> None:
    assert similar({3: 5, 0: 5, 7: 5}, 32) == [[3, 0, 7]]
