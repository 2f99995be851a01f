"""What the host has: its processor, the cores and the memory that this process may use. Imports no torch.

A container's limits count, not the machine's size: a process that takes what the machine has and its control group does
not is killed without a word.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_INSTRUCTION_SETS = (("amx_tile", "amx"), ("avx512f", "avx512"), ("avx2", "avx2"))
"""Flags of /proc/cpuinfo, widest first, and what they are called in `DeviceInfo.arch`."""


@dataclass(frozen=True, slots=True)
class Host:
    """The machine under `root`, which tests replace by a directory."""

    root: Path = field(default=Path("/"))

    def processor(self) -> str:
        """The processor's name as the vendor prints it."""
        return self._cpu_fact("model name") or platform.processor() or platform.machine()

    def arch(self) -> str:
        """Machine and widest vector instructions, e.g. `x86_64-avx512`."""
        flags = self._cpu_fact("flags").split()
        widest = next((name for flag, name in _INSTRUCTION_SETS if flag in flags), None)
        return f"{platform.machine()}-{widest}" if widest else platform.machine()

    def instructions(self) -> str:
        """What code compiled for this very processor depends on."""
        return f"{self.processor()} {self._cpu_fact('flags')}"

    def multiplies_integers(self) -> bool:
        """Whether 8-bit products are summed in 32 bits by one instruction (VNNI, AMX)."""
        return not {"avx512_vnni", "avx_vnni", "amx_int8"}.isdisjoint(self._cpu_fact("flags").split())

    def multiplies_bytes(self) -> bool:
        """Whether 8-bit products are summed at all without widening each: by those, or by AVX2."""
        return self.multiplies_integers() or "avx2" in self._cpu_fact("flags").split()

    def cores(self) -> int:
        """Cores that this process may keep busy: its affinity, less where the control group's quota is smaller."""
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        for group in self._control_groups():
            quota, _, period = _read(group / "cpu.max").partition(" ")
            if quota.isdigit() and period.isdigit():
                cores = min(cores, max(1, int(quota) // int(period)))
        return cores

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes: the machine's, or the tightest control group's around this process."""
        machine = psutil.virtual_memory()
        free, total = machine.available, machine.total
        for group in self._control_groups():
            limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
            if limit is None or limit >= machine.total:
                continue
            used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
            total = min(total, limit)
            free = min(free, max(0, limit - used + _reclaimable(group)))
        return free, total

    def _cpu_fact(self, name: str) -> str:
        for line in _read(self.root / "proc/cpuinfo").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
        return ""

    def _control_groups(self) -> Iterator[Path]:
        """This process's control group and those around it, version 2, or its memory group of version 1.

        Inside a container the path of /proc/self/cgroup may be the host's and not be there; its root is what counts.
        """
        top = self.root / "sys/fs/cgroup"
        for line in _read(self.root / "proc/self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "memory"):
                continue
            first = top / controllers if controllers else top
            group = first / path.lstrip("/")
            while group != first:
                yield group
                group = group.parent
            yield first


def _reclaimable(group: Path) -> int:
    """Bytes of file cache that the kernel gives back before it would kill: counted as used, but free."""
    for line in _read(group / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key in ("inactive_file", "total_inactive_file") and value.isdigit():
            return int(value)
    return 0


def _number(path: Path) -> int | None:
    """The file's number; None where there is no file, or the word `max`."""
    text = _read(path)
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    """The file's text without surrounding blanks; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
