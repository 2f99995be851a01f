"""Weight types of 4 bits that are a table: what each of the sixteen codes stands for, before its scale.

`nf4` (Dettmers et al. 2023, appendix E) are quantiles of a normal distribution; `fp4` is bitsandbytes' own float of a
sign, two bits of exponent and one of mantissa, brought to a largest value of 1. `mxfp4` and `nvfp4` are both e2m1 (OCP
Microscaling Formats 1.0, table 5); they differ in groups and scales alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4 = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)


def _signed(magnitudes: tuple[float, ...]) -> tuple[float, ...]:
    """The highest of four bits is the sign."""
    return magnitudes + tuple(-value for value in magnitudes)


CODES: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "nf4": (
            -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
            -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
            0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
            0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
        ),
        "fp4": _signed(_FP4),
        "mxfp4": _signed(_E2M1),
        "nvfp4": _signed(_E2M1),
    }
)  # fmt: skip
"""By `WeightScheme.weight`."""
