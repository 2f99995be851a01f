"""What bounds a step and a sequence: the operator's numbers, the pool's size and the shapes a backend was built for."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from enum import Enum, auto

from mainspring.core.batch import Batch, Buckets
from mainspring.core.errors import ErrorKind, RequestError
from mainspring.core.request import SamplingParams, Submit
from mainspring.core.scheduling.blocks import BlockPool


class StepKind(Enum):
    """What a step may contain. A row *decodes* when it computes exactly one token."""

    MIXED = auto()
    DECODE = auto()
    PREFILL = auto()


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits that agree with each other: made by `derive_limits`."""

    max_sequences: int
    """Rows. All of them can decode in one step."""
    max_length: int
    """Tokens of a sequence."""
    max_positions: int
    """Positions of one sequence that the pool, and the block tables of every program, can hold."""
    chunk_tokens: int
    """Tokens of one sequence in a step."""
    prefill_sequences: int
    """Rows of a step that is not all decodes."""
    prefill_tokens: int
    """Tokens of a step that is not all decodes."""
    mixes: bool
    buckets: Buckets | None

    @property
    def choices(self) -> int:
        """Tokens that a step which is not all decodes may choose. A program chooses at most as many as it has rows."""
        return self.prefill_sequences if self.choices_are_rows else self.prefill_tokens

    @property
    def choices_are_rows(self) -> bool:
        """Whether all such steps run in programs of fixed shapes."""
        return self.buckets is not None and bool(self.buckets.prefill) and not self.buckets.any_shape

    def kinds(self, num_decodes: int, last: StepKind) -> tuple[StepKind, ...]:
        """Kinds of step to try in turn, with this many sequences decoding.

        Decodes that fit no step beside a prefill alternate with prefills, so that neither starves the other.
        """
        if self.mixes and num_decodes < self.prefill_sequences and num_decodes < self.prefill_tokens:
            return (StepKind.MIXED,)
        if last is StepKind.PREFILL:
            return StepKind.DECODE, StepKind.PREFILL
        return StepKind.PREFILL, StepKind.DECODE

    def step_size(self, kind: StepKind) -> tuple[int, int]:
        """(tokens, rows) that a step of this kind may have."""
        if kind is StepKind.DECODE:
            return self.max_sequences, self.max_sequences
        return self.prefill_tokens, self.prefill_sequences

    def pad(self, batch: Batch, blocks: int) -> None:
        """Sets the bucket of a batch whose longest row spans so many blocks."""
        if self.buckets is not None:
            decode = batch.num_decodes == len(batch.rows)
            rows = batch.num_choices if batch.drafts else 0  # a bucket holds as many choices as rows
            batch.bucket = self.buckets.smallest(batch.num_tokens, max(rows, len(batch.rows)), blocks, decode=decode)

    def length(self, num_prompt: int, params: SamplingParams) -> int:
        """Tokens at which a sequence ends; the last of them needs no position in the cache."""
        length = min(self.max_length, self.max_positions + 1)
        if params.max_tokens is None:
            return length
        # Whoever generates nothing still has one token chosen, which is dropped, so that its prompt comes to an end.
        return min(length, num_prompt + params.max_tokens) if params.max_tokens else num_prompt + 1

    def validate(self, submit: Submit) -> None:
        """Raises `RequestError` (INVALID) for a request that can never run."""
        given = len(submit.tokens)
        if not given:
            raise _invalid("the prompt is empty; send at least one token")
        if submit.n < 1:
            raise _invalid(f"n is {submit.n}; ask for at least one sequence")
        if given > self.max_length - (submit.params.max_tokens != 0):
            raise _invalid(
                f"prompt has {given} tokens; the context is {self.max_length} and must also hold the answer: "
                f"send at most {self.max_length - 1}"
            )
        if given > self.max_positions:
            raise _invalid(f"prompt has {given} tokens; the KV cache holds {self.max_positions}: send at most as many")
        try:
            array("i", submit.tokens)
        except OverflowError:
            worst = max(submit.tokens, key=abs)
            raise _invalid(f"token id {worst} is not in any vocabulary; ids are below 2**31") from None


def derive_limits(
    *,
    pool: BlockPool,
    max_sequences: int,
    max_length: int,
    max_batch_tokens: int,
    max_prefill_chunk: int | None,
    buckets: Buckets | None,
    mixes: bool,
) -> Limits:
    """Makes the operator's limits agree with the pool and the buckets, always downwards.

    Raises `ValueError` when nothing could ever be scheduled under them.
    """
    rows = prefill_rows = min(max_sequences, max_batch_tokens)
    tokens, positions = max_batch_tokens, pool.capacity * pool.block_size
    if buckets is not None:
        if problems := buckets.check():
            raise ValueError("; ".join(problems))
        decode = buckets.decode[-1]
        rows = prefill_rows = min(rows, decode.sequences, decode.tokens)
        positions = min(positions, decode.blocks * pool.block_size)
        for prefill in () if buckets.any_shape else buckets.prefill[-1:]:
            prefill_rows, tokens = min(rows, prefill.sequences), min(tokens, prefill.tokens)
            positions = min(positions, prefill.blocks * pool.block_size)
    chunk = min(tokens, max_prefill_chunk or tokens)
    if min(rows, prefill_rows, chunk, positions) < 1 or max_length < 2:
        raise ValueError(
            f"nothing can run with {rows} rows, {prefill_rows} rows of prefill, chunks of {chunk} tokens, "
            f"{positions} positions a sequence and a context of {max_length}: each needs at least 1, the context 2"
        )
    return Limits(
        max_sequences=rows,
        max_length=max_length,
        max_positions=positions,
        chunk_tokens=chunk,
        prefill_sequences=prefill_rows,
        prefill_tokens=tokens,
        mixes=mixes,
        buckets=buckets,
    )


def _invalid(message: str) -> RequestError:
    return RequestError(ErrorKind.INVALID, message)
