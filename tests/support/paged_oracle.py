"""An executor made of arithmetic that trusts nobody: it checks every batch, and every position that a row attends.

A slot of its cache holds a digest of the whole prefix up to that position, built from the slot before it, as keys and
values are in a model. So stale blocks, aliases, missing copies and wrong prefix hits all show as a wrong digest, and
the next token, a function of the digest, is the same however the sequence was batched, chunked, preempted or forked.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from mainspring.core.batch import Batch, Buckets, StepResult
from mainspring.core.errors import ErrorKind
from mainspring.core.request import Delta, FinishReason, RequestId, SamplingParams, Start, Submit, TokenLogprobs
from mainspring.core.scheduling.blocks import BlockPool
from mainspring.core.scheduling.scheduler import Scheduler
from mainspring.core.scheduling.sequence import Sequence
from mainspring.core.speculation.speculation import Speculation

EOS = 0
VOCABULARY = 40
NAN, LOST = -1, -2
"""Contents of slots whose row was not finite, and of slots that a failed step never wrote."""
GARBAGE = -3
"""What a row that read a lost slot samples; no client may ever see it."""


def digest(before: int, token: int) -> int:
    """What a slot holds after `token`, when the slot before it holds `before`."""
    return before if before < 0 else hash((before, token)) & 0xFFFFFFFF


def choose(prefix: int, seed: int, params: SamplingParams, generated: int) -> int:
    """The token after a prefix; deterministic, seeded when the temperature asks for noise."""
    token = hash((prefix, seed if params.temperature else 0)) % VOCABULARY
    masked = {EOS, *params.stop_token_ids} if generated < params.min_tokens else set()
    while token in masked:
        token += 1
    return token


def logprobs(prefix: int, token: int, top: int) -> TokenLogprobs:
    """Of a prompt's token after a prefix: numbers that only this prefix has, and none after a broken one."""
    if prefix < 0:
        return TokenLogprobs(math.nan, [], [])
    return TokenLogprobs(-float(hash((prefix, token)) & 0xFFFF), list(range(top)), [float(prefix)] * top)


def alone(submit: Submit, seed: int, limit: int) -> list[int]:
    """What a sequence generates when nothing else runs, up to `limit` tokens of prompt and output."""
    params, tokens, prefix = submit.params, list(submit.tokens), 1
    for token in tokens:
        prefix = digest(prefix, token)
    stops = {*params.stop_token_ids} | (set() if params.ignore_eos else {EOS})
    prompt = len(tokens)
    most = limit if params.max_tokens is None else min(limit, prompt + params.max_tokens)
    while len(tokens) < most:
        token = choose(prefix, seed, params, len(tokens) - prompt)
        tokens.append(token)
        prefix = digest(prefix, token)
        if token in stops and len(tokens) - prompt > params.min_tokens:
            break
    return tokens[prompt:]


def scored_alone(submit: Submit) -> list[TokenLogprobs]:
    """The log-probabilities of a request's prompt."""
    prefix, found = 1, []
    for before, token in pairwise(submit.tokens):
        prefix = digest(prefix, before)
        found.append(logprobs(prefix, token, submit.params.prompt_logprobs or 0))
    return found


@dataclass
class Row:
    tokens: list[int]
    blocks: list[int]
    num_prompt: int
    params: SamplingParams
    seed: int


class PagedOracle:
    """Applies batches in order and answers at once."""

    def __init__(self, num_blocks: int, block_size: int, buckets: Buckets | None = None, mixes: bool = True) -> None:
        self.block_size = block_size
        self.num_blocks = num_blocks
        self.buckets = buckets
        self.mixes = mixes
        self.slots: list[int | None] = [None] * (num_blocks * block_size)
        self.rows: dict[int, Row] = {}
        self.computed_tokens = 0

    def execute(self, batch: Batch, *, fail: bool = False, nan_tokens: frozenset[int] = frozenset()) -> StepResult:
        """Runs a step. `fail`: only its table changes happen. Rows that read a token of `nan_tokens` are not finite."""
        self.check_shape(batch)
        self._copy(batch, fail)
        for admission in batch.admissions:
            assert 0 not in admission.blocks
            self.rows[admission.row] = Row(
                list(admission.tokens),
                list(admission.blocks),
                admission.num_prompt_tokens,
                admission.params,
                admission.seed,
            )
        for row, index, block in batch.new_blocks:
            assert block != 0
            blocks = self.rows[row].blocks
            assert index <= len(blocks)
            blocks[index:] = [block]
        written = [slot for row, start, count in self._ranges(batch) for slot in self._slots(row, start, count)]
        assert len(set(written)) == len(written), "two rows write to one slot"
        drafts = {batch.rows[draft.index]: list(draft.tokens) for draft in batch.drafts}
        for row, start, count in self._ranges(batch):
            self.rows[row].tokens += drafts.get(row, [])
            self._compute(self.rows[row], start, count, fail, nan_tokens)
        self.computed_tokens += batch.num_tokens
        result = self._sample(batch, fail, drafts)
        result.prompt_logprobs = self._score(batch)
        return result

    def check_shape(self, batch: Batch) -> None:
        """What every executor may rely on."""
        rows, counts = batch.rows, batch.counts
        assert len(rows) == len(batch.starts) == len(counts) == len(batch.samples) == len(set(rows)) > 0
        assert sum(counts) == batch.num_tokens
        assert min(counts) >= 1
        assert [count == 1 for count in counts] == [True] * batch.num_decodes + [False] * (
            len(rows) - batch.num_decodes
        )
        assert {admission.row for admission in batch.admissions} <= set(rows)
        assert {row for row, _, _ in batch.new_blocks} <= set(rows)
        for asked in batch.prompt_logprobs:
            end = batch.starts[asked.index] + counts[asked.index]
            assert asked.count >= 1
            assert batch.starts[asked.index] < asked.start
            assert asked.start + asked.count <= end + 1
        if not self.mixes:
            assert batch.num_decodes in (0, len(rows)), "decodes beside prefills"
        if self.buckets is None:
            assert batch.bucket is None
            return
        decode = batch.num_decodes == len(rows)
        bucket = batch.bucket
        if not (decode or self.buckets.prefill):
            assert bucket is None
            return
        assert bucket in (self.buckets.decode if decode else self.buckets.prefill)
        spans = [-(-(start + count) // self.block_size) for start, count in zip(batch.starts, counts, strict=True)]
        assert batch.num_tokens <= bucket.tokens
        assert max(len(rows), batch.num_choices) <= bucket.sequences
        assert max(spans) <= bucket.blocks

    def _copy(self, batch: Batch, fail: bool) -> None:
        size = self.block_size
        sources = {source for source, _ in batch.copies}
        destinations = [destination for _, destination in batch.copies]
        assert len(set(destinations)) == len(destinations)
        assert not sources.intersection(destinations), "copies depend on each other"
        for source, destination in batch.copies:
            copied = [LOST] * size if fail else self.slots[source * size : (source + 1) * size]
            self.slots[destination * size : (destination + 1) * size] = copied

    def _ranges(self, batch: Batch) -> list[tuple[int, int, int]]:
        return list(zip(batch.rows, batch.starts, batch.counts, strict=True))

    def _slots(self, row: int, start: int, count: int) -> list[int]:
        size, blocks = self.block_size, self.rows[row].blocks
        return [blocks[position // size] * size + position % size for position in range(start, start + count)]

    def _compute(self, row: Row, start: int, count: int, fail: bool, nan_tokens: frozenset[int]) -> None:
        size = self.block_size
        true, read = 1, 1
        for position in range(start + count):
            token = row.tokens[position]
            slot = row.blocks[position // size] * size + position % size
            true = digest(true, token)
            if position >= start:
                broken = NAN if token in nan_tokens else digest(read, token)
                self.slots[slot] = LOST if fail else broken
            held = self.slots[slot]
            assert held is not None, f"position {position} is attended but was never written"
            assert held < 0 or held == true, f"position {position} holds another prefix"
            read = held if read >= 0 else read

    def _sample(self, batch: Batch, fail: bool, drafts: dict[int, list[int]]) -> StepResult:
        tokens: list[int] = []
        bad: list[int] = []
        size = self.block_size
        for (number, start, count), samples in zip(self._ranges(batch), batch.samples, strict=True):
            row, end = self.rows[number], start + count
            assert samples == (end == len(row.tokens)), "a row samples exactly when its last token is computed"
            if not samples:
                continue
            guesses, known = drafts.get(number, []), end - len(drafts.get(number, []))
            chosen: list[int] = []
            for last in range(known, end + 1):
                held = [self.slots[row.blocks[position // size] * size + position % size] for position in range(last)]
                if NAN in held:
                    bad.append(len(tokens) + len(chosen))
                sure = not fail and min(held) >= 0
                chosen.append(choose(held[-1], row.seed, row.params, last - row.num_prompt) if sure else GARBAGE)
            right = 0
            while right < len(guesses) and chosen[right] == guesses[right]:
                right += 1
            row.tokens[known:] = chosen[: right + 1]
            tokens += chosen
        return StepResult(tokens, None, tuple(bad))

    def _score(self, batch: Batch) -> list[list[TokenLogprobs]]:
        size, found = self.block_size, []
        for asked in batch.prompt_logprobs:
            row = self.rows[batch.rows[asked.index]]
            assert asked.start + asked.count <= row.num_prompt
            assert asked.top == row.params.prompt_logprobs
            found.append([])
            for position in range(asked.start, asked.start + asked.count):
                held = self.slots[row.blocks[(position - 1) // size] * size + (position - 1) % size]
                found[-1].append(logprobs(held, row.tokens[position], asked.top))
        return found


@dataclass
class Output:
    """What a client has received of one sequence."""

    submit: Submit
    tokens: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    error: ErrorKind | None = None
    message: str = ""
    start: Start | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    token_turns: list[int] = field(default_factory=list)


class Guesser(Speculation):
    """Knows what comes, and lies about it now and then; who drafts when is left to chance."""

    def __init__(self, count: int, source: random.Random) -> None:
        super().__init__(count)
        self.source = source
        self.right = self.wrong = 0

    def drafting(self, sequences: list[Sequence], running: int) -> list[Sequence]:
        return [sequence for sequence in sequences if self.source.random() < 0.7]

    def propose(self, sequence: Sequence, most: int) -> list[int]:
        said = len(sequence.tokens) - sequence.num_prompt
        # Past a stop token too, which nobody may ever see.
        endless = msgspec.structs.replace(sequence.request.submit.params, stop_token_ids=(), max_tokens=None)
        submit = msgspec.structs.replace(sequence.request.submit, params=endless)
        coming = alone(submit, sequence.seed, len(sequence.tokens) + most)[said:]
        count = self.source.randint(0, min(most, self.count))
        return [token if self.source.random() < 0.8 else self.source.randrange(VOCABULARY) for token in coming[:count]]


class Simulation:
    """A scheduler, the oracle, a clock that moves one unit a turn, and clients that check what they receive."""

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        depth: int = 2,
        prefix_caching: bool = True,
        tick: float = 1.0,
        **scheduler: object,
    ) -> None:
        self.now = 0.0
        self.turns = 0
        self.tick = tick
        self.depth = depth
        self.pool = BlockPool(num_blocks, block_size, prefix_caching=prefix_caching, hash_key=b"test")
        options = {"max_sequences": 8, "max_length": 64, "max_batch_tokens": 16, "eos_token_ids": (EOS,)} | scheduler
        self.scheduler = Scheduler(pool=self.pool, clock=lambda: self.now, **options)
        self.oracle = PagedOracle(
            num_blocks,
            block_size,
            options.get("buckets"),
            options.get("mixes_prefill_and_decode", True),
        )
        self.pending: deque[tuple[Batch, StepResult, bool]] = deque()
        self.outputs: dict[tuple[int, int], Output] = {}
        self.batches: list[Batch] = []
        self.nan_tokens: frozenset[int] = frozenset()
        self.fail_next = False
        self._ids = 0

    def submit(self, tokens: list[int], *, n: int = 1, priority: int = 0, **options: object) -> int:
        """Sends a request; keywords that `Submit` does not know are sampling parameters. Returns its id."""
        envelope = {name: options.pop(name) for name in ("timeout", "cache_salt") if name in options}
        self._ids += 1
        submit = Submit(RequestId(self._ids), tokens, SamplingParams(**options), n, priority, **envelope)
        self.scheduler.submit(submit)
        for index in range(n):
            self.outputs[self._ids, index] = Output(submit)
        return self._ids

    def cancel(self, request_id: int, index: int | None = None) -> None:
        self.receive(self.scheduler.cancel(RequestId(request_id), index))

    def turn(self) -> None:
        """One turn of an engine's loop."""
        self.turns += 1
        self.now += self.tick
        self.receive(self.scheduler.expire())
        while len(self.pending) < self.depth and (batch := self.scheduler.schedule()) is not None:
            failed, self.fail_next = self.fail_next, False
            self.batches.append(batch)
            self.pending.append((batch, self.oracle.execute(batch, fail=failed, nan_tokens=self.nan_tokens), failed))
        assert self.pending or not self.scheduler.has_work, "work is left, but nothing runs"
        self.commit_one()
        problems = self.scheduler.check()
        assert not problems, problems

    def commit_one(self) -> None:
        if self.pending:
            batch, result, failed = self.pending.popleft()
            if failed:
                self.receive(self.scheduler.fail(batch, ErrorKind.OUT_OF_MEMORY, "the step did not fit"))
            else:
                self.receive(self.scheduler.commit(batch, result))

    def receive(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            output = self.outputs[delta.request_id, delta.index]
            assert output.finish is None, "a sequence ends once, and nothing follows its end"
            assert GARBAGE not in delta.tokens
            if delta.tokens:
                assert (delta.start is not None) == (not output.tokens), "the first token comes with the start's facts"
            if delta.prompt_logprobs is not None:
                assert delta.start is not None
                siblings = [self.outputs[delta.request_id, index] for index in range(output.submit.n)]
                assert not any(sibling.start or sibling.prompt_logprobs for sibling in siblings), "once, and first"
                output.prompt_logprobs = delta.prompt_logprobs
            output.tokens += delta.tokens
            output.token_turns += [self.turns] * len(delta.tokens)
            output.finish, output.error, output.message = delta.finish, delta.error, delta.message
            output.start = delta.start or output.start

    def run(self, most_turns: int = 5000, each: Callable[[], None] = lambda: None) -> None:
        """Turns until nothing is left to do, then checks that nothing is held."""
        while self.scheduler.has_work:
            self.turn()
            each()
            most_turns -= 1
            assert most_turns, "the simulation does not end"
        self.check_quiet()

    def check_quiet(self) -> None:
        stats = self.scheduler.stats()
        assert (stats.running, stats.waiting, stats.waiting_tokens, stats.blocks_used) == (0, 0, 0, 0)
        assert all(output.finish is not None for output in self.outputs.values())

    def expected(self, request_id: int, index: int = 0) -> list[int]:
        """What the sequence generates alone, given the seed that its start reported (any, if it is greedy)."""
        output = self.outputs[request_id, index]
        limits = self.scheduler.limits
        limit = min(limits.max_length, limits.max_positions + 1)
        seed = output.start.seed if output.start else (output.submit.params.seed or 0) + index
        return alone(output.submit, seed, limit)

    def check_tokens(self) -> None:
        """Every sequence got what it would have got alone; those cut short got a beginning of it."""
        for (request_id, index), output in self.outputs.items():
            expected = self.expected(request_id, index)
            if output.finish in (FinishReason.CANCELLED, FinishReason.ERROR):
                assert output.tokens == expected[: len(output.tokens)]
            else:
                assert output.tokens == expected

    def check_prompt_logprobs(self) -> None:
        """Every request that asked, and began to answer, was told the whole of its prompt; nobody else was."""
        for (request_id, index), output in self.outputs.items():
            if index:
                continue
            outputs = [self.outputs[request_id, sibling] for sibling in range(output.submit.n)]
            told = [sibling.prompt_logprobs for sibling in outputs if sibling.prompt_logprobs is not None]
            asked = output.submit.params.prompt_logprobs is not None
            begun = any(sibling.start for sibling in outputs)
            assert told == ([scored_alone(output.submit)] if asked and begun else [])
