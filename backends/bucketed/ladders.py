"""The shapes that programs are compiled for. Each costs seconds of start-up, so ladders climb by factors.

A ladder is rows, tokens or blocks; `--backend-option decode_rows=8,64` sets one by hand. The last rung is always the
limit itself, so that everything the scheduler may emit fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from mainspring.core.backend import ShapeLimits
from mainspring.core.batch import Bucket, Buckets
from mainspring.core.errors import BackendError

LADDERS = {
    "decode_rows": "rows of a decode step",
    "prefill_tokens": "tokens of a prefill step",
    "blocks": "blocks of the longest row",
}
"""`--backend-option` keys, and what their numbers count."""

PREFILL_ROWS = 4
"""Prompts of one prefill step. Their tokens see each other's keys, masked, so that more would compute mostly masks."""


@dataclass(frozen=True, slots=True)
class Rungs:
    """Where a machine's ladders begin, and by which factor they climb."""

    rows: tuple[int, int] = (8, 2)
    """Matrix units compute eight rows in the time of one."""
    tokens: tuple[int, int] = (32, 2)
    blocks: tuple[int, int] = (16, 4)


DEFAULT = Rungs()


def ladders(limits: ShapeLimits, given: Mapping[str, tuple[int, ...]], climb: Rungs = DEFAULT) -> Buckets:
    """All combinations: rows and blocks for decodes, tokens and blocks for everything else."""
    rows = _ladder(given.get("decode_rows"), *climb.rows, limits.sequences)
    tokens = _ladder(given.get("prefill_tokens"), *climb.tokens, limits.tokens)
    blocks = _ladder(given.get("blocks"), *climb.blocks, limits.blocks)
    prompts = min(PREFILL_ROWS, limits.sequences)
    return Buckets(
        decode=tuple(Bucket(count, count, width) for width, count in product(blocks, rows)),
        prefill=tuple(Bucket(count, prompts, width) for width, count in product(blocks, tokens)),
    )


def read_ladders(options: Mapping[str, str]) -> dict[str, tuple[int, ...]]:
    """The ladders set by hand. Raises `BackendError` for what are no numbers that rise from 1."""
    return {key: _numbers(key, text) for key, text in options.items() if key in LADDERS}


def _numbers(key: str, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    numbers = tuple(int(part) for part in parts if part.strip().isdecimal())
    if len(numbers) < len(parts) or numbers[0] < 1 or list(numbers) != sorted(set(numbers)):
        raise BackendError(f"--backend-option {key}={text} must be {LADDERS[key]}, rising, e.g. {key}=16,64,256")
    return numbers


def _ladder(given: tuple[int, ...] | None, first: int, factor: int, limit: int) -> tuple[int, ...]:
    rungs = list(given or ())
    if not given:
        while first < limit:
            rungs.append(first)
            first *= factor
    return (*(rung for rung in rungs if rung < limit), limit)
