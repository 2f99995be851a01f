"""Checks of the ops that choose tokens: the same ids as the reference, and its log-probabilities.

Legend: N rows that choose, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from mainspring.core.backend import Device
from mainspring.core.conformance.report import Finding
from mainspring.core.conformance.trial import TOLERANCES, Trial
from mainspring.core.ops import resolve
from mainspring.core.ops.choose import choose
from mainspring.core.ops.logprobs import logprobs
from mainspring.core.ops.sample import SamplingTensors, sample, seed_key

CHECKED = frozenset({"sample", "choose", "logprobs"})
ROWS, VOCABULARIES = 7, (40, 1500)
"""The larger vocabulary is beyond what implementations look at first."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What one row asks for; the defaults are greedy."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    typical_p: float = 1.0
    min_p: float = 0.0


BATCHES: Mapping[str, tuple[Wish, ...]] = MappingProxyType(
    {
        "greedy": (Wish(),) * ROWS,
        "temperature": tuple(Wish(0.2 + 0.3 * row) for row in range(ROWS)),
        "greedy among drawing": tuple(Wish(float(row % 2)) for row in range(ROWS)),
        "top_k": tuple(Wish(1.0, top_k=1 + 5 * row) for row in range(ROWS)),
        "top_p": tuple(Wish(1.5, top_p=0.1 + 0.14 * row) for row in range(ROWS)),
        "typical_p": tuple(Wish(1.0, typical_p=0.2 + 0.1 * row) for row in range(ROWS)),
        "min_p": tuple(Wish(1.2, min_p=0.05 * row) for row in range(ROWS)),
        "each its own": (
            Wish(),
            Wish(0.7, top_k=20, top_p=0.9),
            Wish(1.0),
            Wish(1.3, top_p=0.8, min_p=0.02),
            Wish(0.9, typical_p=0.9),
            Wish(1.1, top_k=3),
            Wish(0.5, 10, 0.9, 0.95, 0.01),
        ),
    }
)


def findings(device: Device) -> Iterator[Finding]:
    """One for each op."""
    overrides = device.ops()
    ops = resolve(overrides)
    names = ("sample", "choose", "logprobs")
    chosen, recorded, measured = (Trial(name, "native" if name in overrides else "falls back") for name in names)
    for vocabulary in VOCABULARIES:
        logits_NV = torch.randn(ROWS, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 3
        theirs = logits_NV.to(device.torch_device)
        for name, wishes in BATCHES.items():

            def ids(wishes: tuple[Wish, ...] = wishes, mine: Tensor = logits_NV, x: Tensor = theirs) -> Pair:
                tensors = sampling_tensors(wishes)
                return ops.sample(x.clone(), _placed(tensors, device.torch_device)), sample(mine.clone(), tensors)

            def ends(wishes: tuple[Wish, ...] = wishes, mine: Tensor = logits_NV, x: Tensor = theirs) -> Pair:
                tensors = sampling_tensors(wishes)
                table_RP, rows_N = torch.zeros(ROWS + 2, 80, dtype=torch.int32), torch.arange(ROWS, 0, -1)
                their_table, their_rows = table_RP.to(x.device), rows_N.int().to(x.device)
                broken, wrong = _broken(x), _placed(tensors, device.torch_device)
                found = ops.choose(broken, wrong, their_table, their_rows), their_table
                return _flat(*found), _flat(choose(sample, _broken(mine), tensors, table_RP, rows_N), table_RP)

            chosen.run(f"{name}, {vocabulary} tokens", ids, 0.0)
            recorded.run(f"{name}, {vocabulary} tokens", ends, 0.0)
        for k in (0, 1, 20):

            def numbers(k: int = k, mine: Tensor = logits_NV, x: Tensor = theirs) -> Pair:
                ids_N = torch.arange(ROWS, dtype=torch.int32) * 5
                return _joined(ops.logprobs(x, ids_N.to(x.device), k)), _joined(logprobs(mine, ids_N, k))

            measured.run(f"{k} likeliest of {vocabulary} tokens", numbers, TOLERANCES[torch.float32])
    yield chosen.finding()
    yield recorded.finding()
    yield measured.finding()


Pair = tuple[Tensor, Tensor]


def sampling_tensors(wishes: tuple[Wish, ...]) -> SamplingTensors:
    """Rows with these wishes, each with a seed and a position of its own."""

    def column(name: str, dtype: torch.dtype) -> Tensor:
        return torch.tensor([getattr(wish, name) for wish in wishes], dtype=dtype)

    drawing = [row for row, wish in enumerate(wishes) if wish.temperature > 0]
    cut = [wishes[row].top_k for row in drawing]
    return SamplingTensors(
        temperature=column("temperature", torch.float32),
        top_k=column("top_k", torch.int32),
        top_p=column("top_p", torch.float32),
        typical_p=column("typical_p", torch.float32),
        min_p=column("min_p", torch.float32),
        key=torch.tensor([seed_key(1000 + row) for row in range(len(wishes))], dtype=torch.int32),
        position=torch.arange(len(wishes), dtype=torch.int32) * 11,
        sampled=None if len(drawing) == len(wishes) else torch.tensor(drawing, dtype=torch.int64),
        any_sampled=bool(drawing),
        any_top_k=any(cut),
        any_top_p=any(wishes[row].top_p < 1 for row in drawing),
        any_typical_p=any(wishes[row].typical_p < 1 for row in drawing),
        any_min_p=any(wishes[row].min_p > 0 for row in drawing),
        max_top_k=max(cut) if cut and all(cut) else 0,
    )


def _broken(logits_NV: Tensor) -> Tensor:
    """A copy in which two rows hold what no number is, and no choice among it is right or wrong."""
    broken_NV = logits_NV.clone()
    broken_NV[2, 7], broken_NV[5, 11] = float("nan"), float("inf")
    return broken_NV


def _flat(chosen_2N: Tensor, table_RP: Tensor) -> Tensor:
    """Everything that `choose` gave, but for the ids of broken rows."""
    chosen_2N, table_RP = chosen_2N.clone(), table_RP.clone()
    for row in (2, 5):
        chosen_2N[0, row] = 0
        table_RP[ROWS - row] = 0
    return torch.cat((chosen_2N.flatten(), table_RP.flatten()))


def _placed(tensors: SamplingTensors, device: str) -> SamplingTensors:
    return replace(
        tensors,
        temperature=tensors.temperature.to(device),
        top_k=tensors.top_k.to(device),
        top_p=tensors.top_p.to(device),
        typical_p=tensors.typical_p.to(device),
        min_p=tensors.min_p.to(device),
        key=tensors.key.to(device),
        position=tensors.position.to(device),
        sampled=None if tensors.sampled is None else tensors.sampled.to(device),
    )


def _joined(parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    chosen_N, top_ids_Nk, top_Nk = parts
    return torch.cat((chosen_N[:, None], top_ids_Nk.float(), top_Nk), dim=1)
