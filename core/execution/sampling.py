"""Sampling parameters of running sequences, and what happens to logits before a token is chosen.

`SamplingTable` keeps every row's parameters as columns on the host, so that a step's tensors are built by fancy
indexing, and only when the set of rows changed. `adjust` applies penalties, logit_bias and min_tokens; the choice
itself is the op `sample`. Penalties count tokens in the executor's token table at each step, so no
[sequences, vocabulary] state exists.

Legend: N rows that choose a token in a step, P those with a penalty, V vocabulary, L tokens of history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mainspring.core.execution.penalties import Penalties, penalise
from mainspring.core.execution.upload import Upload
from mainspring.core.ops.sample import SamplingTensors, seed_key
from mainspring.core.processors.contract import LogitsProcessor
from mainspring.core.processors.stage import NO_PROCESSORS, Processing, ProcessorTable
from mainspring.core.request import SamplingParams

Value = TypeVar("Value")

Rows = npt.NDArray[np.int64]

_COLUMNS = np.dtype(
    [
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("typical_p", np.float32),
        ("min_p", np.float32),
        ("repetition", np.float32),
        ("frequency", np.float32),
        ("presence", np.float32),
        ("top_k", np.int32),
        ("key", np.int32),
        ("num_prompt_tokens", np.int32),
        ("logprobs", np.int32),  # -1: none
        ("adjusted", np.int32),  # 0 or 1
    ]
)
_OFF = (0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0, 0, 0, -1, 0)

_PACKED_FLOATS = ("temperature", "top_p", "typical_p", "min_p")
_PACKED_INTEGERS = ("top_k", "key")
PACKED_COLUMNS = len(_PACKED_FLOATS) + len(_PACKED_INTEGERS)
"""Words of a row that chooses inside a program: floats by their bits."""


@dataclass(frozen=True, slots=True)
class Bias:
    """logit_bias of all rows, flattened: `value` is added at (row, token)."""

    rows: Tensor
    tokens: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Bans:
    """min_tokens, flattened: (row, token) is impossible at positions before `until`."""

    rows: Tensor
    tokens: Tensor
    until: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """How the N rows of a step choose, on the device. Valid as long as the rows belong to the same requests."""

    sampling: SamplingTensors
    """Its `position` is a placeholder: each step puts its own there."""
    penalties: Penalties | None
    bias: Bias | None
    bans: Bans | None
    logprob_rows: tuple[int, ...]
    """Which of the N get log-probabilities; empty when none asked."""
    logprob_counts: tuple[int, ...]
    """How many each of them asked for, -1 for rows that did not ask."""
    logprob_index: Tensor | None
    """`logprob_rows` on the device."""
    logprob_adjusted: Tensor | None
    """Which of them want those of what is left after all adjustments, [rows, 1] bool; None when none does."""
    guided_rows: tuple[int, ...]
    """Table rows that follow a grammar, or of all N rows where shapes must not vary and any does."""
    guided_places: tuple[int, ...]
    """Which of the N those are."""
    guided_index: Tensor | None
    """The same on the device."""
    max_logprobs: int
    """How many likeliest tokens to look for: the most asked for, rounded up."""
    processing: tuple[Processing, ...] = ()
    """Logits processors, in their order, with the rows that asked for them."""


class SamplingTable:
    """Sampling parameters of the rows of the state table, on the host."""

    def __init__(
        self,
        num_rows: int,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        *,
        processors: Mapping[str, LogitsProcessor] = NO_PROCESSORS,
    ) -> None:
        self.processors = ProcessorTable(processors)
        self._columns = np.full(num_rows, np.array(_OFF, dtype=_COLUMNS))
        self._packed = np.zeros((PACKED_COLUMNS, num_rows), dtype=np.int32)
        self._demanding = np.zeros(num_rows, dtype=np.bool_)
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._bias: dict[int, dict[int, float]] = {}
        self._bans: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._guided = np.zeros(num_rows, dtype=np.bool_)
        for row in range(num_rows):
            self._pack_row(row)

    def admit(self, row: int, params: SamplingParams, seed: int, num_prompt_tokens: int) -> None:
        """Sets a row's parameters. Token ids outside the vocabulary cannot be generated and are left out."""
        self._columns[row] = (
            params.temperature,
            params.top_p,
            params.typical_p,
            params.min_p,
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
            params.top_k,
            seed_key(seed),
            num_prompt_tokens,
            -1 if params.logprobs is None else params.logprobs,
            params.adjusted_logprobs,
        )
        self._bias.pop(row, None)
        self._bans.pop(row, None)
        self._guided[row] = params.grammar is not None
        self.processors.admit(row, params.processors)
        if bias := {token: value for token, value in params.logit_bias.items() if 0 <= token < self._vocab_size}:
            self._bias[row] = bias
        if params.min_tokens > 0 and (ends := self._ends(params)):
            self._bans[row] = (num_prompt_tokens + params.min_tokens, ends)
        self._pack_row(row)

    def demands(self, rows: Rows) -> bool:
        """Whether some row asks for more than `any_stage` says of it: it must be chosen for with a `Selection`."""
        return bool(self._demanding[rows].any())

    def pack(self, rows: npt.NDArray[np.int32], out: npt.NDArray[np.int32]) -> None:
        """Writes what `any_stage` reads, [PACKED_COLUMNS, N], of the rows given."""
        np.take(self._packed, rows, axis=1, out=out, mode="clip")

    def _pack_row(self, row: int) -> None:
        columns = self._columns[row]
        self._packed[: len(_PACKED_FLOATS), row].view(np.float32)[:] = [columns[name] for name in _PACKED_FLOATS]
        self._packed[len(_PACKED_FLOATS) :, row] = [columns[name] for name in _PACKED_INTEGERS]
        self._demanding[row] = (
            row in self._bias
            or row in self._bans
            or self._guided[row]
            or row in self.processors
            or columns["logprobs"] >= 0
            or bool(_penalised(columns))
            or (columns["temperature"] > 0 and columns["typical_p"] < 1)
        )

    def _ends(self, params: SamplingParams) -> tuple[int, ...]:
        """Tokens that would end the sequence."""
        ends = set(params.stop_token_ids) | (set() if params.ignore_eos else set(self._eos_token_ids))
        return tuple(sorted(token for token in ends if 0 <= token < self._vocab_size))

    def select(self, rows: Rows, upload: Upload, *, partition: bool) -> Selection:
        """The tensors of a step whose sampling rows are `rows`.

        With `partition`, only rows that need a stage pay for it; without, a stage that any row needs covers all of
        `rows`, so that shapes depend on their number alone.
        """
        columns = self._columns[rows]
        asking = _subset(columns["logprobs"] >= 0, partition)
        guided = _subset(self._guided[rows], partition)
        adjusted = columns["adjusted"][asking] > 0
        return Selection(
            sampling=_sampling_tensors(columns, upload, partition),
            penalties=_penalties(rows, columns, upload, partition),
            bias=self._select_bias(rows, upload, partition),
            bans=self._select_bans(rows, upload, partition),
            logprob_rows=tuple(asking.tolist()),
            logprob_counts=tuple(columns["logprobs"][asking].tolist()),
            logprob_index=upload(asking) if asking.size else None,
            logprob_adjusted=upload(adjusted[:, np.newaxis]) if adjusted.any() else None,
            guided_rows=tuple(rows[guided].tolist()),
            guided_places=tuple(guided.tolist()),
            guided_index=upload(guided) if guided.size else None,
            max_logprobs=likeliest(int(columns["logprobs"][asking].max(initial=0)), padded=not partition),
            processing=self.processors.select(rows, columns["num_prompt_tokens"], upload, partition=partition),
        )

    def drawn(self, rows: Rows, upload: Upload, *, partition: bool = True) -> SamplingTensors:
        """How tokens are drawn for these rows, whatever else they ask for; `partition` as in `select`."""
        return _sampling_tensors(self._columns[rows], upload, partition)

    def _select_bias(self, rows: Rows, upload: Upload, partition: bool) -> Bias | None:
        entries = [(index, token, value) for index, bias in _present(rows, self._bias) for token, value in bias.items()]
        if not entries:
            return None
        indices, tokens, values = zip(*entries, strict=True)
        # A bias of nothing fills it up, so that few shapes occur.
        spare = _spare(len(entries), partition)
        places = np.pad(np.array((indices, tokens), dtype=np.int64), ((0, 0), (0, spare)))
        rows_K, tokens_K = _upload_rows(places, upload, partition)
        return Bias(rows_K, tokens_K, upload(np.pad(np.array(values, dtype=np.float32), (0, spare))))

    def _select_bans(self, rows: Rows, upload: Upload, partition: bool) -> Bans | None:
        entries = [(index, token, until) for index, (until, tokens) in _present(rows, self._bans) for token in tokens]
        if not entries:
            return None
        # Bans that ended before the first position fill it up.
        columns = np.pad(np.array(entries, dtype=np.int64).T, ((0, 0), (0, _spare(len(entries), partition))))
        rows_K, tokens_K, until_K = _upload_rows(columns, upload, partition)
        return Bans(rows_K, tokens_K, until_K)


def adjust(
    logits_NV: Tensor,
    selection: Selection,
    tokens: Tensor,
    position_N: Tensor,
    *,
    max_length: int,
    flush: Callable[[], None] = lambda: None,
) -> Tensor:
    """Logits after penalties, logit_bias and min_tokens, in that order; the argument itself stays as it is.

    `tokens` is the token table. Row n's history is its first position_N[n] tokens, at most `max_length`. `flush` comes
    after each stage, so that a device that compiles them has one program a stage and not one for each of their sets.
    """
    if selection.penalties is None and selection.bias is None and selection.bans is None:
        return logits_NV
    logits_NV = logits_NV.float().clone()
    flush()
    if (penalties := selection.penalties) is not None:
        history_PL = tokens[penalties.table_rows, :max_length]
        lengths_P = position_N[penalties.rows]
        logits_NV[penalties.rows] = penalise(logits_NV[penalties.rows], history_PL, lengths_P, penalties)
        flush()
    if (bias := selection.bias) is not None:
        logits_NV.index_put_((bias.rows, bias.tokens), bias.values, accumulate=True)
        flush()
    if (bans := selection.bans) is not None:
        value = torch.where(position_N[bans.rows] < bans.until, float("-inf"), 0.0)
        logits_NV.index_put_((bans.rows, bans.tokens), value, accumulate=True)
        flush()
    return logits_NV


def any_stage(columns: Tensor, position_N: Tensor) -> SamplingTensors:
    """What `SamplingTable.pack` wrote, [PACKED_COLUMNS, N] int32, as a program takes it: every row may want any stage
    but typical_p, whose order differs from that of the logits.
    """
    temperature, top_p, typical_p, min_p = columns[: len(_PACKED_FLOATS)].view(torch.float32)
    top_k, key = columns[len(_PACKED_FLOATS) :]
    return SamplingTensors(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        typical_p=typical_p,
        min_p=min_p,
        key=key,
        position=position_N,
        sampled=None,
        any_sampled=True,
        any_top_k=True,
        any_top_p=True,
        any_typical_p=False,
        any_min_p=True,
        max_top_k=0,
    )


def _sampling_tensors(columns: npt.NDArray[np.void], upload: Upload, partition: bool) -> SamplingTensors:
    drawing = columns["temperature"] > 0
    drawn = columns[drawing]
    top_k = drawn["top_k"]
    floats = np.stack([columns[name] for name in ("temperature", "top_p", "typical_p", "min_p")])
    temperature, top_p, typical_p, min_p = _upload_rows(floats, upload, partition)
    top_k_N, key = _upload_rows(np.stack([columns["top_k"], columns["key"]]), upload, partition)
    stages = {
        "any_top_k": bool((top_k > 0).any()),
        "any_top_p": bool((drawn["top_p"] < 1).any()),
        "any_min_p": bool((drawn["min_p"] > 0).any()),
    }
    atypical = bool((drawn["typical_p"] < 1).any())
    if not partition:
        # One program for each way to truncate would be sixteen of them.
        stages = dict.fromkeys(stages, any(stages.values()) or atypical)
    return SamplingTensors(
        temperature=temperature,
        top_p=top_p,
        typical_p=typical_p,
        min_p=min_p,
        top_k=top_k_N,
        key=key,
        position=key,
        sampled=upload(np.flatnonzero(drawing)) if partition and not drawing.all() else None,
        any_sampled=bool(drawing.any()),
        any_typical_p=atypical,
        **stages,
        max_top_k=int(top_k.max()) if partition and drawn.size and (top_k > 0).all() else 0,
    )


def _penalties(rows: Rows, columns: npt.NDArray[np.void], upload: Upload, partition: bool) -> Penalties | None:
    penalised = _subset(_penalised(columns), partition)
    if not penalised.size:
        return None
    chosen = columns[penalised]
    indices, table_rows = _upload_rows(np.stack([penalised, rows[penalised]]), upload, partition)
    floats = np.stack([chosen[name] for name in ("repetition", "frequency", "presence")])
    repetition, frequency, presence = _upload_rows(floats, upload, partition)
    return Penalties(
        rows=indices,
        table_rows=table_rows,
        num_prompt_tokens=upload(chosen["num_prompt_tokens"]),
        repetition=repetition,
        frequency=frequency,
        presence=presence,
    )


def _penalised(columns: npt.NDArray[np.void] | np.void) -> npt.NDArray[np.bool_]:
    """Which have a penalty."""
    some = (columns["repetition"] != 1) | (columns["frequency"] != 0) | (columns["presence"] != 0)
    return np.asarray(some)


def _subset(wanted: npt.NDArray[np.bool_], partition: bool) -> Rows:
    """Indices of the rows that want something, or of all rows when any does and shapes must not vary."""
    if partition or not wanted.any():
        return np.flatnonzero(wanted)
    return np.arange(len(wanted))


def _present(rows: Rows, table: dict[int, Value]) -> Iterator[tuple[int, Value]]:
    """(index in rows, entry) of the rows that have an entry; free when the table is empty, as it mostly is."""
    if table:
        yield from ((index, table[row]) for index, row in enumerate(rows.tolist()) if row in table)


def _upload_rows(array: npt.NDArray[np.generic], upload: Upload, partition: bool) -> Sequence[Tensor]:
    """The rows of an array in one copy; one copy each where even taking a row apart would be a program."""
    return upload(array).unbind() if partition else [upload(row) for row in array]


FEW_ENTRIES, MORE_ENTRIES = 64, 512
"""Sizes that lists of biases and bans are filled up to on machines that compile; longer ones to powers of two."""
FEW_LIKELIEST, MORE_LIKELIEST = 8, 32
"""Likewise the number of likeliest tokens to look for."""


def _spare(count: int, partition: bool) -> int:
    return _rounded(count, partition, (FEW_ENTRIES, MORE_ENTRIES)) - count


def likeliest(most: int, *, padded: bool) -> int:
    """How many likeliest tokens to look for, so that few shapes occur."""
    return _rounded(most, not padded, (FEW_LIKELIEST, MORE_LIKELIEST)) if most or padded else 0


def _rounded(count: int, partition: bool, sizes: Sequence[int]) -> int:
    """The next power of two; with few shapes to run in, the next of `sizes` while there is one."""
    fitting = () if partition else [size for size in sizes if count <= size]
    return min(fitting, default=1 << (count - 1).bit_length())
