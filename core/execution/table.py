"""The state table: what an executor remembers of running sequences between steps.

A row holds a sequence's tokens (on the device, the only source of input ids), its block table and its sampling
parameters (on the host, where a step's integers are computed). The last row belongs to nobody: padding reads and
writes there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mainspring.core.batch import Admission, Batch
from mainspring.core.execution.sampling import SamplingTable
from mainspring.core.execution.upload import Upload
from mainspring.core.request import SamplingParams


class StateTable:
    """Rows of `max_sequences` sequences of up to `max_length` tokens."""

    def __init__(
        self, max_sequences: int, max_length: int, block_size: int, *, sampling: SamplingTable, torch_device: str
    ) -> None:
        self.block_size = block_size
        self.nobody = max_sequences
        self.blocks = np.zeros((max_sequences + 1, -(-max_length // block_size)), dtype=np.int32)
        self.sampling = sampling
        # One column more than tokens: a step planned before its sequence is known to have ended may write there.
        self.tokens = torch.zeros((max_sequences + 1, max_length + 1), dtype=torch.int32, device=torch_device)
        self.admissions = 0
        """How many there were: while it stays the same, a row stays with its sequence."""

    @property
    def max_length(self) -> int:
        """Tokens that a row holds."""
        return self.tokens.shape[1] - 1

    def update(self, batch: Batch) -> None:
        """Host side of a step's changes: block tables and sampling parameters."""
        for admission in batch.admissions:
            self.blocks[admission.row, : len(admission.blocks)] = admission.blocks
            self.blocks[admission.row, len(admission.blocks) :] = 0
            self.admit(admission.row, admission.params, admission.seed, admission.num_prompt_tokens)
        if batch.new_blocks:
            rows, indices, blocks = np.array(batch.new_blocks, dtype=np.int32).T
            self.blocks[rows, indices] = blocks

    def admit(self, row: int, params: SamplingParams, seed: int = 0, num_prompt_tokens: int = 0) -> None:
        """Gives a row, which may be nobody's, the parameters that its tokens are chosen by from now on."""
        self.sampling.admit(row, params, seed, num_prompt_tokens)
        self.admissions += 1

    def write_tokens(self, admissions: Sequence[Admission], upload: Upload, *, width: int | None = None) -> None:
        """Device side: the tokens of admitted sequences, all in one copy padded to the longest, or to `width`.

        Padding may be written, because a row's entries past its sequence's end mean nothing.
        """
        if not admissions:
            return
        longest = width or max(len(admission.tokens) for admission in admissions)
        packed = np.zeros((len(admissions), 1 + longest), dtype=np.int32)
        for place, admission in enumerate(admissions):
            packed[place, 0] = admission.row
            packed[place, 1 : 1 + len(admission.tokens)] = admission.tokens
        uploaded = upload(packed)
        self.tokens[uploaded[:, 0], :longest] = uploaded[:, 1:]

    def append(self, rows_N: Tensor, positions_N: Tensor, ids_N: Tensor) -> None:
        """Puts sampled tokens where the next step will read them."""
        self.tokens.index_put_((rows_N, positions_N), ids_N)
