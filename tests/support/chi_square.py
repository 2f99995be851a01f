"""Pearson's chi-square: counts against probabilities, and counts against counts."""

from __future__ import annotations

from collections.abc import Mapping

import torch

LEAST_EXPECTED = 5.0
"""Cells in which fewer are expected are counted as one: the approximation wants no less."""
Finding = tuple[float, int]
"""A statistic and its degrees of freedom; those of independent tests may be added."""


def p_value(finding: Finding) -> float:
    """How likely chance alone gives as much."""
    statistic, freedom = finding
    halves = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(*halves))


def against_shares(counts: Mapping[int, int], shares: Mapping[int, float]) -> Finding:
    """Counts against the probabilities of the same cells."""
    total = sum(counts.values())
    groups = _grouped({cell: share * total for cell, share in shares.items() if share > 0})
    statistic = 0.0
    for group in groups:
        mean = total * sum(shares[cell] for cell in group)
        statistic += (sum(counts.get(cell, 0) for cell in group) - mean) ** 2 / mean
    return statistic, len(groups) - 1


def against_counts(one: Mapping[int, int], other: Mapping[int, int]) -> Finding:
    """Counts that may be of one distribution."""
    totals = sum(one.values()), sum(other.values())
    both = {cell: one.get(cell, 0) + other.get(cell, 0) for cell in {*one, *other}}
    smaller = min(totals) / sum(totals)
    groups = _grouped({cell: smaller * count for cell, count in both.items()})
    statistic = 0.0
    for group in groups:
        for counts, total in zip((one, other), totals, strict=True):
            mean = total / sum(totals) * sum(both[cell] for cell in group)
            statistic += (sum(counts.get(cell, 0) for cell in group) - mean) ** 2 / mean
    return statistic, len(groups) - 1


def _grouped(expected: Mapping[int, float]) -> list[list[int]]:
    """Each cell alone, but for rare ones, which are taken together until they are rare no more."""
    groups: list[list[int]] = []
    rare: list[int] = []
    for cell in sorted(expected, key=lambda cell: expected[cell]):
        rare.append(cell)
        if sum(expected[one] for one in rare) >= LEAST_EXPECTED:
            groups.append(rare)
            rare = []
    if groups:
        groups[-1] += rare
    elif rare:
        groups.append(rare)
    return groups
