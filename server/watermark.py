"""Finds the watermark of `core/processors/watermark.py` in a text's tokens: with the key, without the model.

The statistic is that of Kirchenbauer et al. 2023 (arXiv:2301.10226), section 3: among T tokens of a text that nobody
marked, about gamma * T are green, and z is how many standard deviations more there are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

SALT = 0x6D61726B
DEFAULT_GAMMA = 0.5
DEFAULT_KEY = 15_485_863
DEFAULT_THRESHOLD = 4.0
"""One text in 30,000 that is not marked lies above it."""
_FULL = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Detection:
    """What the tokens say."""

    num_scored: int
    """Distinct pairs of a token and the one before it: repetitions prove nothing twice."""
    num_green: int
    z: float
    p: float
    """How likely a text that nobody marked has so high a z."""

    def detected(self, threshold: float = DEFAULT_THRESHOLD) -> bool:
        """Whether the text carries the mark."""
        return self.z > threshold


def detect(tokens: Sequence[int], *, gamma: float = DEFAULT_GAMMA, key: int = DEFAULT_KEY) -> Detection:
    """Looks for the mark in token ids, of which the first only gives the second its context.

    `gamma` and `key` are those that the text was generated with; `delta` need not be known. Raises ValueError for a
    gamma that is no share.
    """
    if not 0 < gamma < 1:
        raise ValueError(f"gamma is {gamma}; it is a share of the vocabulary, above 0 and below 1")
    pairs = set(pairwise(tokens))
    green = sum(is_green(previous, token, gamma=gamma, key=key) for previous, token in pairs)
    if not pairs:
        return Detection(0, 0, 0.0, 0.5)
    z = (green - gamma * len(pairs)) / math.sqrt(len(pairs) * gamma * (1 - gamma))
    return Detection(len(pairs), green, z, math.erfc(z / math.sqrt(2)) / 2)


def is_green(previous: int, token: int, *, gamma: float = DEFAULT_GAMMA, key: int = DEFAULT_KEY) -> bool:
    """Whether `token` is on the green list that `previous` gives."""
    share = (_murmur3((key, SALT, previous, token)) & 0x7FFFFFFF) >> 7
    as_float32: float = struct.unpack("f", struct.pack("f", gamma))[0]
    return share < as_float32 * 2.0**24


def _murmur3(words: Iterable[int]) -> int:
    """MurmurHash3_x86_32 of four 32-bit words, hash seed 0 (Austin Appleby, public domain)."""
    state = 0
    for word in words:
        word = word * 0xCC9E2D51 & _FULL
        word = (word << 15 | word >> 17) & _FULL
        state ^= word * 0x1B873593 & _FULL
        state = (state << 13 | state >> 19) & _FULL
        state = state * 5 + 0xE6546B64 & _FULL
    state ^= 16
    state = (state ^ state >> 16) * 0x85EBCA6B & _FULL
    state = (state ^ state >> 13) * 0xC2B2AE35 & _FULL
    return state ^ state >> 16
