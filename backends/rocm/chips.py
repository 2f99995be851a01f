"""AMD's architectures that kernels are compiled for, and what differs between them.

Waves, LDS and matrix units as in LLVM's AMDGPU usage guide and AMD's ISA manuals; the fp8 formats as in AMD's HIP
documentation ("FP8 numbers"): MI300 has the FNUZ ones, MI350 and RDNA 4 those of the Open Compute Project.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

KIB = 1024


@dataclass(frozen=True, slots=True)
class Chip:
    """One architecture."""

    wave: int
    """Threads that run in lockstep."""
    lds_bytes: int
    """Memory that a program's threads may share."""
    matrix: Literal["v_mfma", "v_wmma"]
    """How its matrix instructions' names begin."""
    fp8: Literal["float8_e4m3fn", "float8_e4m3fnuz"] | None
    """The 8-bit format that its instructions know."""
    library: Literal["hipblaslt", "hipblas"] = "hipblaslt"
    """Which of AMD's libraries torch is told to multiply by."""
    small: bool = False
    """Whether registers hold half of what an Instinct's do: tiles are smaller."""


CHIPS = {
    "gfx90a": Chip(64, 64 * KIB, "v_mfma", None),
    "gfx942": Chip(64, 64 * KIB, "v_mfma", "float8_e4m3fnuz"),
    "gfx950": Chip(64, 160 * KIB, "v_mfma", "float8_e4m3fn"),
    "gfx1100": Chip(32, 64 * KIB, "v_wmma", None, library="hipblas", small=True),
    "gfx1201": Chip(32, 64 * KIB, "v_wmma", "float8_e4m3fn", small=True),
}
"""MI200, MI300, MI350, RX 7900, RX 9070."""
