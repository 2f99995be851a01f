"""The ops `sample` and `choose` on the device: no sort of the vocabulary, and the reference's own noise.

Legend: N rows that choose a token, V vocabulary, R rows of the token table, P its positions.
"""

from __future__ import annotations

from torch import Tensor

from mainspring.backends.triton.sample import Destination, Peaks, draw, find_peaks, highest, record, thresholds
from mainspring.core.ops.choose import choose as choose_with
from mainspring.core.ops.sample import SamplingTensors
from mainspring.core.ops.sample import sample as reference


def sample(logits_NV: Tensor, sampling: SamplingTensors) -> Tensor:
    """As `core.ops.sample.sample`."""
    if sampling.any_sampled and sampling.any_typical_p:
        # Typicality orders tokens by another measure; it is rare enough to be left to the reference's sort.
        return reference(logits_NV, sampling)
    return highest(_drawn(logits_NV, find_peaks(logits_NV), sampling), logits_NV.shape[1])


def choose(logits_NV: Tensor, sampling: SamplingTensors, tokens_RP: Tensor, rows_N: Tensor) -> Tensor:
    """As `core.ops.choose.choose`: one more store in the last kernel of `sample`."""
    if sampling.any_sampled and sampling.any_typical_p:
        return choose_with(reference, logits_NV, sampling, tokens_RP, rows_N)
    peaks = find_peaks(logits_NV)
    destination = Destination(tokens_RP, rows_N, sampling.position)
    return record(_drawn(logits_NV, peaks, sampling), peaks, logits_NV.shape[1], destination)


def _drawn(logits_NV: Tensor, peaks: Peaks, sampling: SamplingTensors) -> Peaks:
    """Rows that do not draw pass through the same kernels and keep their peaks; these do not read their logits."""
    if not sampling.any_sampled:
        return peaks
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
