"""The op `sample` on the device: no sort of the vocabulary, and the reference's own noise.

Legend: N rows that choose a token, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from mainspring.backends.triton.sample import draw, find_peaks, greedy, thresholds
from mainspring.core.ops.sample import SamplingTensors
from mainspring.core.ops.sample import sample as reference


def sample(logits_NV: Tensor, sampling: SamplingTensors) -> Tensor:
    """As `core.ops.sample.sample`. Rows that do not draw pass through the same kernels and stay greedy."""
    if not sampling.any_sampled:
        return greedy(logits_NV)
    if sampling.any_typical_p:
        # Typicality orders tokens by another measure; it is rare enough to be left to the reference's sort.
        return reference(logits_NV, sampling)
    peaks = find_peaks(logits_NV)
    temperature_N, key_N, position_N = sampling.temperature, sampling.key, sampling.position
    if not (sampling.any_top_k or sampling.any_top_p or sampling.any_min_p):
        return draw(logits_NV, peaks, temperature_N, key_N, position_N)
    cut_N = thresholds(
        logits_NV,
        peaks,
        temperature_N,
        sampling.top_k,
        sampling.top_p,
        any_top_k=sampling.any_top_k,
        any_top_p=sampling.any_top_p,
    )
    return draw(logits_NV, peaks, temperature_N, key_N, position_N, cut=(cut_N, sampling.min_p))
