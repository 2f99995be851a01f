"""The step's stage in which processors change logits: whose rows they are on the host, the change on the device.

Legend: N rows that choose a token in a step, P those that asked for a processor, V vocabulary, H tokens of history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mainspring.core.execution.upload import Upload
from mainspring.core.processors.contract import LogitsProcessor, ProcessedRows
from mainspring.core.request import LogitsProcessing, SamplingParams

Rows = npt.NDArray[np.int64]
NO_PROCESSORS: Mapping[str, LogitsProcessor] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Processing:
    """A processor and the P rows of a step that it is for, on the device."""

    processor: LogitsProcessor
    rows: Tensor
    """[P] int64: which of the N."""
    table_rows: Tensor
    """[P] int64: their rows in the token table."""
    asked: Tensor | None
    """[P, 1] bool, where shapes must not vary and the P are all N: which of them asked. None: all."""
    parameters: Mapping[str, Tensor]
    num_prompt_tokens: Tensor
    """[P] int32."""


class ProcessorTable:
    """What each row of the state table asked of processors, on the host."""

    def __init__(self, processors: Mapping[str, LogitsProcessor] = NO_PROCESSORS) -> None:
        self._processors = processors
        self._asked: dict[int, Mapping[str, tuple[float, ...]]] = {}

    def admit(self, row: int, asked: Sequence[LogitsProcessing]) -> None:
        """Takes over a row. Names and numbers were checked at the border."""
        self._asked.pop(row, None)
        if asked:
            self._asked[row] = {each.name: each.values for each in asked}

    def __contains__(self, row: int) -> bool:
        return row in self._asked

    def variants(self) -> Iterator[SamplingParams]:
        """Parameters that between them use every processor, so that its programs are compiled."""
        for name, processor in self._processors.items():
            defaults = tuple(parameter.default for parameter in processor.parameters)
            yield SamplingParams(processors=(LogitsProcessing(name, defaults),))

    def select(
        self, rows: Rows, num_prompt_tokens: npt.NDArray[np.int32], upload: Upload, *, partition: bool
    ) -> tuple[Processing, ...]:
        """What a step whose sampling rows are `rows` must do. `partition` is that of `SamplingTable.select`."""
        if not self._asked:
            return ()
        of_rows = [self._asked.get(row, {}) for row in rows.tolist()]
        return tuple(
            _processing(name, processor, of_rows, rows, num_prompt_tokens, upload=upload, partition=partition)
            for name, processor in self._processors.items()
            if any(name in asked for asked in of_rows)
        )


def _processing(
    name: str,
    processor: LogitsProcessor,
    of_rows: Sequence[Mapping[str, tuple[float, ...]]],
    rows: Rows,
    num_prompt_tokens: npt.NDArray[np.int32],
    *,
    upload: Upload,
    partition: bool,
) -> Processing:
    wants = np.array([name in asked for asked in of_rows])
    places = np.flatnonzero(wants) if partition else np.arange(len(rows))
    defaults = tuple(parameter.default for parameter in processor.parameters)
    values = [of_rows[place].get(name, defaults) for place in places.tolist()]
    return Processing(
        processor=processor,
        rows=upload(places),
        table_rows=upload(rows[places]),
        asked=None if partition else upload(wants[:, None]),
        parameters={
            parameter.name: upload(np.array([row[column] for row in values], dtype=_DTYPES[parameter.kind]))
            for column, parameter in enumerate(processor.parameters)
        },
        num_prompt_tokens=upload(num_prompt_tokens[places]),
    )


_DTYPES = MappingProxyType({"number": np.float32, "integer": np.int32})


def process(
    logits_NV: Tensor,
    stages: Sequence[Processing],
    tokens: Tensor,
    position_N: Tensor,
    *,
    flush: Callable[[], None] = lambda: None,
) -> Tensor:
    """Logits after every processor that a row asked for; the argument itself stays as it is.

    `tokens` is the token table; row n's token will stand at position_N[n] of its sequence.
    """
    for stage in stages:
        logits_NV = logits_NV.float()
        given_PV = logits_NV[stage.rows]
        position_P = position_N[stage.rows]
        rows = ProcessedRows(
            parameters=stage.parameters,
            previous=_previous(tokens, stage.table_rows, position_P, stage.processor.history),
            position=position_P,
            num_prompt_tokens=stage.num_prompt_tokens,
        )
        if stage.asked is None:
            found_PV = stage.processor.process(given_PV, rows)
        else:
            found_PV = torch.where(stage.asked, stage.processor.process(given_PV.clone(), rows), given_PV)
        logits_NV = logits_NV.index_put((stage.rows,), found_PV)
        flush()
    return logits_NV


def _previous(tokens: Tensor, table_rows: Tensor, position_P: Tensor, history: int) -> Tensor:
    """[P, H] int32: the tokens before each position, -1 where the sequence had not begun."""
    back_H = torch.arange(-history, 0, device=position_P.device)
    place_PH = position_P[:, None].long() + back_H
    found_PH = tokens[table_rows[:, None], place_PH.clamp(min=0)]
    return torch.where(place_PH >= 0, found_PH, -1)
