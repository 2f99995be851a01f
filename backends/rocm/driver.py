"""What GPUs there are, as the kernel's amdgpu driver lists them in /sys: listing loads neither torch nor HIP.

The topology's format is the Linux kernel's (`drivers/gpu/drm/amd/amdkfd/kfd_topology.c`): a folder a node, `properties`
a name and a number a line; nodes without `simd_count` are CPUs. `gfx_target_version` is major * 10000 + minor * 100 +
stepping, so 90402 is gfx942 and 90010 gfx90a.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TOPOLOGY = Path("/sys/class/kfd/kfd/topology/nodes")
PRIVATE_HEAPS = ("1", "2")
"""Kinds of memory bank that are a GPU's own: HSA_HEAPTYPE_FRAME_BUFFER_PUBLIC and _PRIVATE."""
VISIBLE = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""HIP's own switches, indices separated by commas, the first that is set; it counts what ROCR_VISIBLE_DEVICES left."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU that the driver shows."""

    arch: str
    total_bytes: int
    processors: int
    uuid: str


def gpus(topology: Path = TOPOLOGY) -> list[Gpu]:
    """All GPUs, in the driver's order, which is HIP's. Empty without the driver."""
    nodes = sorted(topology.iterdir(), key=lambda node: int(node.name)) if topology.is_dir() else []
    found = []
    for node in nodes:
        properties = _properties(node / "properties")
        if int(properties.get("simd_count", "0")) and int(properties.get("gfx_target_version", "0")):
            found.append(_gpu(node, properties))
    return found


def visible(found: list[Gpu], environment: Mapping[str, str]) -> list[Gpu]:
    """Those that HIP will show, in its order. A list that is not of plain indices is left for HIP to judge."""
    for switch in ("ROCR_VISIBLE_DEVICES", next((name for name in VISIBLE if name in environment), VISIBLE[0])):
        indices = environment.get(switch)
        if indices is not None and re.fullmatch(r"(\d+(,\d+)*)?", indices):
            found = [found[int(index)] for index in indices.split(",") if index and int(index) < len(found)]
    return found


def _gpu(node: Path, properties: Mapping[str, str]) -> Gpu:
    version = int(properties["gfx_target_version"])
    major, minor, stepping = version // 10000, version // 100 % 100, version % 100
    banks = [_properties(bank / "properties") for bank in (node / "mem_banks").glob("*")]
    memory = sum(int(bank["size_in_bytes"]) for bank in banks if bank.get("heap_type") in PRIVATE_HEAPS)
    per_processor = int(properties.get("simd_per_cu", "4")) or 4
    identity = int(properties.get("unique_id", "0"))
    uuid = f"GPU-{identity:016x}" if identity else ""
    return Gpu(f"gfx{major}{minor:x}{stepping:x}", memory, int(properties["simd_count"]) // per_processor, uuid)


def _properties(file: Path) -> dict[str, str]:
    """Empty where the file is not there or may not be read: inside containers others' GPUs may not."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    return dict(line.split(maxsplit=1) for line in lines if len(line.split()) == 2)
