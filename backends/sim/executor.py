"""Runs batches in arithmetic: the state table, a paged cache of prefix states, and a stream that takes time.

The cache is what makes this a test bed. Each position's cell holds the state of the prefix up to it (`tokens.py`), and
a step compares what it finds there with the sequence's own tokens. Where a block table, a prefix hit or a copy is
wrong, they disagree, and every later token of the sequence is wrong, as on a real machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mainspring.backends.sim.faults import Faults
from mainspring.backends.sim.latency import StepCost
from mainspring.backends.sim.tokens import EMPTY, SPOILT, Vocabulary, extend, salt_of
from mainspring.core.backend import KVSpec
from mainspring.core.batch import Admission, Batch, Buckets, PromptRange, StepResult
from mainspring.core.errors import DeviceOutOfMemory
from mainspring.core.grammar.guides import Guides
from mainspring.core.grammar.store import Grammars
from mainspring.core.request import SamplingParams, TokenLogprobs

_WRONG = 0x5DEECE66D
"""A token outside every vocabulary: extends a state to one that no honest prefix has."""

_BOUND_FACTOR = 4.0
_BOUND_SECONDS = 1.0


@dataclass(slots=True)
class Row:
    """One line of the state table: a sequence that runs."""

    tokens: list[int]
    blocks: list[int]
    params: SamplingParams
    num_prompt_tokens: int
    salt: int
    may_end: bool
    has_rules: bool
    """Whether its draw needs more than the state (`Vocabulary.draw_allowed`)."""
    spoilt: bool
    """Whether a fault makes its numbers not finite."""
    script: list[int] | None = None
    """What it was told to answer; None: whatever comes."""
    lost: bool = False
    """Whether a step of it was lost: what follows is rubbish until it is admitted again."""
    position: int = 0
    """Tokens whose states are in the cache."""
    state: int = EMPTY
    """The state after `position` tokens."""
    full_blocks: list[int] = field(default_factory=list)
    """The state after each full block of them."""


@dataclass(slots=True)
class SimPending:
    """A step on its way. `ready_at` is a moment of the executor's clock."""

    step: int
    outcome: StepResult
    ready_at: float
    faults: Faults
    clock: Callable[[], float]
    sleep: Callable[[float], None]
    problem: DeviceOutOfMemory | None = None

    def done(self) -> bool:
        return self.clock() >= self.ready_at

    def result(self) -> StepResult:
        """Waits until `ready_at`, then gives the step's tokens or its fault."""
        remaining = self.ready_at - self.clock()
        if remaining > 0:
            self.sleep(remaining)
        if self.problem is not None:
            raise self.problem
        self.faults.strike(self.step)
        return self.outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class SimSpec:
    """What is simulated."""

    name: str
    kv: KVSpec
    num_blocks: int
    vocabulary: Vocabulary
    cost: StepCost
    faults: Faults = field(default_factory=Faults)
    buckets: Buckets | None = None
    budget_tokens: int | None = None
    """Tokens past which a step is out of memory."""
    quote: int | None = None
    """The token that quotes: a prompt with two of them says its own answer."""
    verify: bool = True
    """Read the cache; without, tokens come from the sequences alone and a wrong plan goes unnoticed."""


class SimExecutor:
    """An `Executor` over no device at all."""

    def __init__(
        self,
        spec: SimSpec,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        grammars: Grammars | None = None,
    ) -> None:
        self._guides = None if grammars is None else Guides(grammars)
        self._spec = spec
        self._clock = clock
        self._sleep = sleep
        self._block_size = spec.kv.block_size
        self._verify = spec.verify
        self._rows: dict[int, Row] = {}
        self._cells: dict[int, list[int]] = {}
        """Block to the states of its positions; blocks that were never written are absent."""
        self._ready_at = 0.0

    def kv_spec(self) -> KVSpec:
        return self._spec.kv

    def num_blocks(self) -> int:
        return self._spec.num_blocks

    def buckets(self) -> Buckets | None:
        return self._spec.buckets

    def device_name(self) -> str:
        return self._spec.name

    def step_seconds(self, batch: Batch) -> float:
        """Several times what the step takes, ordered delays included, and a second for the host."""
        return _BOUND_SECONDS + _BOUND_FACTOR * self._seconds(batch)

    def close(self) -> None:
        self._rows.clear()
        self._cells.clear()

    def execute(self, batch: Batch) -> SimPending:
        """Computes the step now and delivers it when the machine would have finished.

        Raises `ValueError` for a batch that contradicts itself, the state table or the buckets.
        """
        self._check(batch)
        self._update_table(batch)
        problem = self._problem(batch)
        if problem is not None or self._spec.faults.loses(batch.step):
            for row_id in batch.rows:
                self._rows[row_id].lost = True
        self._ready_at = max(self._clock(), self._ready_at) + self._seconds(batch)
        return SimPending(
            batch.step, self._run(batch), self._ready_at, self._spec.faults, self._clock, self._sleep, problem
        )

    def _seconds(self, batch: Batch) -> float:
        return self._spec.cost.seconds(batch) + self._spec.faults.slow.get(batch.step, 0.0)

    def _problem(self, batch: Batch) -> DeviceOutOfMemory | None:
        budget = self._spec.budget_tokens
        if budget is None or batch.num_tokens <= budget:
            return None
        return DeviceOutOfMemory(f"a step of {batch.num_tokens} tokens; the budget is {budget}")

    # The state table

    def _update_table(self, batch: Batch) -> None:
        for source, destination in batch.copies:
            if source in self._cells:
                self._cells[destination] = self._cells[source].copy()
            else:
                self._cells.pop(destination, None)
        for admission in batch.admissions:
            self._rows[admission.row] = self._admitted(admission)
            if self._guides is not None:
                said = admission.tokens[admission.num_prompt_tokens :]
                self._guides.admit(admission.row, admission.params.grammar, said)
        for row_id, index, block in batch.new_blocks:
            self._set_block(self._rows[row_id].blocks, index, block)

    def _admitted(self, admission: Admission) -> Row:
        params = admission.params
        marked = self._spec.faults.nan_tokens
        return Row(
            tokens=list(admission.tokens),
            blocks=list(admission.blocks),
            params=params,
            num_prompt_tokens=admission.num_prompt_tokens,
            salt=salt_of(params, admission.seed),
            may_end=not params.ignore_eos,
            has_rules=bool(params.logit_bias or params.min_tokens),
            script=self._quoted(admission.tokens[: admission.num_prompt_tokens]),
            spoilt=bool(marked) and not marked.isdisjoint(admission.tokens[: admission.num_prompt_tokens]),
        )

    def _quoted(self, prompt: Sequence[int]) -> list[int] | None:
        quote = self._spec.quote
        if quote is None or not self._spec.vocabulary.eos_token_ids:
            return None
        places = [position for position, token in enumerate(prompt) if token == quote]
        if len(places) < 2:
            return None
        return [*prompt[places[-2] + 1 : places[-1]], self._spec.vocabulary.eos_token_ids[0]]

    def _set_block(self, table: list[int], index: int, block: int) -> None:
        if index > len(table):
            raise ValueError(f"block {block} at index {index} leaves a gap in a block table of {len(table)}")
        if index == len(table):
            table.append(block)
        else:
            table[index] = block

    def _check(self, batch: Batch) -> None:
        widths = {len(batch.rows), len(batch.starts), len(batch.counts), len(batch.samples)}
        if len(widths) != 1 or not batch.rows:
            raise ValueError(f"step {batch.step} describes its rows by lists of {sorted(widths)} entries")
        if sum(batch.counts) != batch.num_tokens:
            raise ValueError(f"step {batch.step} has {sum(batch.counts)} tokens and says {batch.num_tokens}")
        buckets = self._spec.buckets
        if buckets is None:
            return
        bucket = batch.bucket
        if bucket is None or bucket not in (*buckets.decode, *buckets.prefill):
            raise ValueError(f"step {batch.step} has no bucket of this machine but {bucket}")
        if batch.num_tokens > bucket.tokens or len(batch.rows) > bucket.sequences:
            raise ValueError(f"{batch.num_tokens} tokens of {len(batch.rows)} sequences do not fit {bucket}")

    # The step

    def _run(self, batch: Batch) -> StepResult:
        tokens: list[int] = []
        logprobs: list[TokenLogprobs | None] = []
        bad: list[int] = []
        drafts = {draft.index: draft.tokens for draft in batch.drafts}
        for place, (row_id, start, count, sample) in enumerate(
            zip(batch.rows, batch.starts, batch.counts, batch.samples, strict=True)
        ):
            row, guesses = self._rows[row_id], drafts.get(place, ())
            if row.lost or row.spoilt:
                self._spoil(row, start, count)
                if sample:
                    bad.append(len(tokens))
                    row.tokens.append(0)
                    tokens += [0] * (1 + len(guesses))
                    logprobs += [None] * (1 + len(guesses))
                continue
            self._compute(row, start, count - len(guesses))
            if sample:
                tokens.append(self._choose(row_id, logprobs))
            for position, guess in enumerate(guesses, start + count - len(guesses)):
                if len(row.tokens) == position + 1 and tokens[-1] == guess:
                    self._compute(row, position, 1)
                    tokens.append(self._choose(row_id, logprobs))
                else:
                    # What follows a wrong guess is computed all the same, and is worth nothing.
                    self._spoil(row, position, 1)
                    tokens.append(0)
                    logprobs.append(None)
        asked = any(entry is not None for entry in logprobs)
        prompts = [self._score(batch, asked_of) for asked_of in batch.prompt_logprobs]
        return StepResult(tokens, logprobs if asked else None, tuple(bad), prompts)

    def _choose(self, row_id: int, logprobs: list[TokenLogprobs | None]) -> int:
        row = self._rows[row_id]
        token = self._guided(row_id) if row.params.grammar is not None else self._sample(row)
        wanted = row.params.logprobs
        logprobs.append(None if wanted is None else self._spec.vocabulary.logprobs(row.state, token, wanted))
        return token

    def _score(self, batch: Batch, asked: PromptRange) -> list[TokenLogprobs]:
        """From the states that the step left in the cache, one position before each token."""
        row, found = self._rows[batch.rows[asked.index]], []
        for position in range(asked.start, asked.start + asked.count):
            index, offset = divmod(position - 1, self._block_size)
            state = self._cells_of(row.blocks[index])[offset]
            found.append(self._spec.vocabulary.score(state, row.tokens[position], asked.top))
        return found

    def _guided(self, row_id: int) -> int:
        """What the prompt quotes where the grammar allows it; else any token that it allows, the end if it may come."""
        row = self._rows[row_id]
        if self._guides is None:
            raise ValueError("a sequence with a grammar, and no grammars")
        mask = self._guides.masks([row_id])[0].tobytes()
        generated = len(row.tokens) - row.num_prompt_tokens
        token = self._spec.vocabulary.draw_masked(row.state, row.salt, mask)
        if row.script is not None and generated < len(row.script):
            scripted = row.script[generated]
            token = scripted if mask[scripted // 8] >> scripted % 8 & 1 else token
        self._guides.expect([row_id], [0], lambda: [token])
        self._guides.catch_up()
        row.tokens.append(token)
        return token

    def _sample(self, row: Row) -> int:
        vocabulary = self._spec.vocabulary
        generated = len(row.tokens) - row.num_prompt_tokens
        if row.script is not None and generated < len(row.script):
            token = row.script[generated]
        elif row.has_rules:
            token = vocabulary.draw_allowed(row.state, row.salt, row.params, generated=generated)
        else:
            token = vocabulary.draw(row.state, row.salt, may_end=row.may_end)
        row.tokens.append(token)
        return token

    def _compute(self, row: Row, start: int, count: int) -> None:
        """Takes the row's state over `count` tokens and writes each position's cell."""
        if start + count > len(row.tokens):
            raise ValueError(f"positions {start} to {start + count} of a sequence of {len(row.tokens)} tokens")
        if start != row.position:
            self._rewind(row, start)
        if self._verify and start and not self._agrees(row, start, count):
            row.state = extend(row.state, _WRONG)
        state, size = row.state, self._block_size
        index, offset = divmod(start, size)
        cells = self._cells_of(row.blocks[index])
        for token in row.tokens[start : start + count] if count > 1 else (row.tokens[start],):
            if offset == size:
                row.full_blocks.append(state)
                index, offset = index + 1, 0
                cells = self._cells_of(row.blocks[index])
            cells[offset] = state = extend(state, token)
            offset += 1
        if offset == size:
            row.full_blocks.append(state)
        row.state = state
        row.position = start + count

    def _rewind(self, row: Row, start: int) -> None:
        """The state that `start` tokens should have left: after a prefix hit, or where a position is computed again."""
        state = EMPTY
        row.full_blocks = []
        for position in range(start):
            state = extend(state, row.tokens[position])
            if (position + 1) % self._block_size == 0:
                row.full_blocks.append(state)
        row.state = state
        row.position = start

    def _agrees(self, row: Row, start: int, count: int) -> bool:
        """Whether the cache holds the row's prefix: the cell before `start`, and the ends of full blocks.

        A decode looks at one of the full blocks, another at each step, so that it costs the same at any length.
        """
        find, blocks = self._cells.get, row.blocks
        full, offset = divmod(start, self._block_size)
        cells = find(blocks[full if offset else full - 1])
        if cells is None or cells[offset - 1] != row.state:
            return False
        if not full:
            return True
        if count == 1:
            index = start % full
            cells = find(blocks[index])
            return cells is not None and cells[-1] == row.full_blocks[index]
        return all(
            (cells := find(block)) is not None and cells[-1] == state
            for block, state in zip(blocks, row.full_blocks, strict=False)
        )

    def _spoil(self, row: Row, start: int, count: int) -> None:
        """Writes numbers that are not finite."""
        for position in range(start, start + count):
            index, offset = divmod(position, self._block_size)
            self._cells_of(row.blocks[index])[offset] = SPOILT

    def _cells_of(self, block: int) -> list[int]:
        cells = self._cells.get(block)
        if cells is None:
            if not 0 < block < self._spec.num_blocks:
                raise ValueError(f"block {block} is not one of 1 to {self._spec.num_blocks - 1}")
            cells = self._cells[block] = [SPOILT] * self._block_size
        return cells
