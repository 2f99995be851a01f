"""The plan of one step: what the scheduler decides and an executor carries out. Plain integers, no tensors.

A sequence that runs owns a *row* of the executor's state table from its admission to its release. The table holds the
sequence's tokens, its block table and its sampling parameters, so a `Batch` carries only what changed (admissions, new
blocks) and what to compute. An executor keeps four invariants:

* batches execute in the order they were given, so a block or row freed at step N may be reused at step N+1;
* a token sampled at step N is visible in the table to step N+1 without passing through the host;
* `copies` happen before anything else of the step;
* changes to the table (admissions, new blocks) hold also when the step itself fails, for later batches build upon them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mainspring.core.request import SamplingParams, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Bucket:
    """One shape a program was built for. A step fits when none of its three numbers is larger."""

    tokens: int
    """Packed tokens, padding included (T)."""
    sequences: int
    """Rows of the step, padding included (R); it chooses as many tokens at most."""
    blocks: int
    """Width of the block table (B)."""


@dataclass(frozen=True, slots=True)
class Buckets:
    """The shapes a backend will run, for machines that build a program per shape.

    In each family the last bucket must be at least as large as every other in all three numbers, so that limits taken
    from it guarantee a fit; `check` says what is wrong otherwise.
    """

    decode: tuple[Bucket, ...]
    """For steps in which every row computes one token."""
    prefill: tuple[Bucket, ...]
    """For all other steps. Empty on machines that capture decodes and run everything else as it comes: those steps
    have no bucket (`Batch.bucket` None) and their own shape.
    """
    any_shape: bool = False
    """Whether other steps than decodes may also have a shape that fits no bucket, and then run as they come. Prefill
    buckets are then programs for shapes that are worth one, and bound nothing; they may be compiled when first met.
    """

    def smallest(self, tokens: int, sequences: int, blocks: int, *, decode: bool) -> Bucket | None:
        """The cheapest bucket that holds the shape, or None when none does: always so in an empty prefill family."""
        best, lowest = None, None
        for bucket in self.decode if decode else self.prefill:
            if tokens <= bucket.tokens and sequences <= bucket.sequences and blocks <= bucket.blocks:
                cost = bucket.tokens, bucket.blocks, bucket.sequences
                if lowest is None or cost < lowest:
                    best, lowest = bucket, cost
        return best

    def check(self) -> list[str]:
        """Sentences that say what makes this set unusable; empty when it is sound."""
        problems = [] if self.decode else ["the decode bucket list is empty"]
        bounding = () if self.any_shape else self.prefill
        for name, family in (("decode", self.decode), ("prefill", bounding)):
            problems += [
                f"the last {name} bucket {family[-1]} must be at least as large as {bucket} in every dimension"
                for bucket in family
                if any(getattr(bucket, side) > getattr(family[-1], side) for side in ("tokens", "sequences", "blocks"))
            ]
        return problems


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence enters the state table, for the first time or again after a preemption."""

    row: int
    tokens: Sequence[int]
    """Prompt and whatever was generated before a preemption."""
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    blocks: Sequence[int]
    """The block table so far, prefix cache hits included."""


@dataclass(frozen=True, slots=True)
class PromptRange:
    """Tokens of a prompt whose log-probabilities a step yields. Each comes of the logits one position before it."""

    index: int
    """Which of the batch's rows it belongs to; the row computes the position before each of these tokens."""
    start: int
    """Position of the first of these tokens, at least 1."""
    count: int
    top: int
    """How many of the likeliest tokens to name at each position."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens that a row is guessed to go on with.

    The row computes its last known token and these behind it, and chooses after each, as it would if that were its last
    token: 1 + len(tokens) choices, of which the first is right, and each further one while the guess before it was.
    """

    index: int
    """Which of the batch's rows it belongs to; that row's `counts` includes the guesses."""
    tokens: Sequence[int]


@dataclass(slots=True)
class Batch:
    """One step. The four parallel lists describe its rows; rows that decode one token come first."""

    step: int
    rows: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    """Position of the first token that the row computes."""
    counts: list[int] = field(default_factory=list)
    """Tokens that the row computes."""
    samples: list[bool] = field(default_factory=list)
    """Whether the row's last token yields a new one; False for all but the last chunk of a prompt."""
    num_decodes: int = 0
    num_tokens: int = 0
    admissions: list[Admission] = field(default_factory=list)
    new_blocks: list[tuple[int, int, int]] = field(default_factory=list)
    """(row, index in its block table, block): blocks that running sequences gained or exchanged."""
    copies: list[tuple[int, int]] = field(default_factory=list)
    """(source block, destination block): contents to copy before the step, all layers, keys and values."""
    prompt_logprobs: list[PromptRange] = field(default_factory=list)
    """Mostly empty. A prompt's tokens come once, in order, whatever chunks and preemptions cut it into."""
    drafts: list[Draft] = field(default_factory=list)
    """Guesses that the step verifies, in the order of their rows. Executors may be asked to under `speculate` alone."""
    wanting: list[int] = field(default_factory=list)
    """Places in `rows` for which an executor that drafts itself should guess what comes after the step."""
    bucket: Bucket | None = None
    """The shape to pad to; None where any shape is taken: on such machines, or for steps beside captured decodes."""

    @property
    def num_choices(self) -> int:
        """Tokens that the step chooses."""
        return sum(self.samples) + sum(len(draft.tokens) for draft in self.drafts)


@dataclass(slots=True)
class StepResult:
    """What a step produced: in the batch's order one token for each row whose `samples` is True, or with a `Draft` one
    for each of its choices."""

    tokens: list[int]
    logprobs: list[TokenLogprobs | None] | None = None
    """None when no row of the step asked for any."""
    bad: tuple[int, ...] = ()
    """Positions in `tokens` whose logits were not finite: those sequences end with `ErrorKind.NUMERICAL`."""
    prompt_logprobs: Sequence[list[TokenLogprobs]] = ()
    """One list for each of the batch's `prompt_logprobs`, with one entry a token."""
    astray: tuple[int, ...] = ()
    """Positions in `tokens` whose sequences cannot be held to their grammar any more: they end with an error."""
    drafts: Sequence[Sequence[int]] = ()
    """What the executor guesses to come next, for each of the batch's `wanting`; empty where it has no guess."""
