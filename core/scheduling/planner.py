"""How one step is filled: decodes first, then prompts under way, then newcomers, within one budget of tokens.

Every running sequence that can decode gets its token in every step that decodes. Blocks for a decode are found by
preemption if need be; a newcomer gets all the blocks of its prompt at once or waits, so that prefilling never runs dry
half-way and admitting forces nobody out, except a lower priority (`_yield_to_head`).
"""

from __future__ import annotations

from mainspring.core.batch import Batch
from mainspring.core.scheduling.ledger import Ledger
from mainspring.core.scheduling.limits import Limits, StepKind
from mainspring.core.scheduling.sequence import Sequence, State
from mainspring.core.scheduling.step import Step
from mainspring.core.speculation.speculation import Speculation

LOOKAHEAD = 8
"""Sequences that do not fit and are looked past in one step to find some that do."""
MAX_BYPASSES = 16
"""Sequences that may be admitted past one that does not fit; then the queue waits for it."""
RECHECK_STEPS = 16
"""Steps after which a sequence that lacked blocks asks the prefix cache again, though no more blocks are free."""


Guesses = dict[Sequence, list[int] | None]


class Planner:
    """Plans steps over the books of a `Ledger`, and makes the moves that the plan needs."""

    def __init__(self, limits: Limits, ledger: Ledger, speculation: Speculation | None = None) -> None:
        self._limits = limits
        self._ledger = ledger
        self._speculation = speculation
        self._last = StepKind.DECODE

    def plan(self, number: int, now: float) -> Step | None:
        """The next step, or None when no sequence can compute anything now."""
        self._yield_to_head()
        guesses = self._guesses()
        blocks: list[tuple[int, int, int]] = []
        for kind in self._kinds(any(guesses.values())):
            step = Step(kind, Batch(number, new_blocks=blocks), *self._limits.step_size(kind))
            step.waiting = bool(guesses)
            self._plan_running(step, guesses)
            if kind is not StepKind.DECODE:
                self._plan_chunks(step)
            self._plan_admissions(step, now)
            if step.sequences or step.chunks:
                self._last = kind
                return self._close(step)
        return None

    def _kinds(self, guesses: bool) -> tuple[StepKind, ...]:
        running = self._ledger.running
        if not guesses and not running.prefilling and not (running.free_rows and self._ledger.queue):
            return (StepKind.DECODE,)
        return self._limits.kinds(len(running.decoding), self._last)

    def _guesses(self) -> Guesses:
        """Who does not decode as always, and what is guessed to come. None: it sits this step out, to draft in a later
        one. Nothing: it asks the executor for guesses.
        """
        speculation, decoding, pool = self._speculation, self._ledger.running.decoding, self._ledger.pool
        if speculation is None:
            return {}
        guesses: Guesses = {item: None for item in decoding if item.verifying}
        drafting = [item for item in decoding if item.computed < item.last and not item.verifying]
        drafting = speculation.drafting(drafting, len(decoding))
        # What all of them guess fits a step beside the others' tokens, and blocks that are free when each has grown by
        # one, so that nobody waits for another's end.
        room = min(self._limits.choices, self._limits.prefill_tokens) - len(decoding)
        drafting = drafting[: max(room, 0)]
        share = min(room // len(drafting), self._limits.chunk_tokens - 1) if drafting else 0
        spare = (pool.num_free // len(decoding) - 1) * pool.block_size if share else 0
        for item in drafting if share else ():
            most = min(share, item.last - item.computed - 1, item.room + max(spare, 0) - item.computed - 1)
            if item.in_flight:
                guesses[item] = None
            elif (found := speculation.propose(item, max(most, 0))) or speculation.asks:
                guesses[item] = found
        return guesses

    def _plan_running(self, step: Step, guesses: Guesses) -> None:
        """Sequences past their prompts. Guesses are where rows of several tokens may be."""
        plain = [] if step.kind is StepKind.PREFILL else self._ledger.running.decoding
        asking: list[Sequence] = []
        if guesses:
            plain = [item for item in plain if item not in guesses]
            without, beside = step.kind is StepKind.DECODE, step.kind is StepKind.MIXED
            asking = [
                item for item, found in guesses.items() if found is not None and (beside or without != bool(found))
            ]
        members = [*plain, *asking] if asking else plain
        short = [item for item in members if item.computed == item.room and item.computed < item.last]
        if short:
            self._grow(short, step)
            plain = [item for item in plain if item.state is State.DECODING]
        step.add_decodes([item for item in plain if item.computed < item.last])
        for sequence in asking:
            if sequence.state is State.DECODING:
                self._draft(sequence, guesses[sequence] or [], step)

    def _draft(self, sequence: Sequence, guesses: list[int], step: Step) -> None:
        while sequence.room < sequence.computed + 1 + len(guesses):
            sequence.index_blocks(self._ledger.pool)
            self._extend(sequence, step)
        if self._limits.choices_are_rows:
            step.rows_left -= len(guesses)
        step.add_drafting(sequence, guesses, wants=self._speculation is not None and self._speculation.asks)

    def _grow(self, short: list[Sequence], step: Step) -> None:
        """Finds a block for each of these decoding sequences, the most urgent first; some of them may be preempted."""
        pool, running = self._ledger.pool, self._ledger.running
        for sequence in short:
            while sequence.state is State.DECODING and not pool.num_free:
                self._ledger.make_room()
            if sequence.state is State.DECODING:
                sequence.index_blocks(pool)
                self._extend(sequence, step)
        # Whoever grew and then gave way to another holds no row any more.
        step.batch.new_blocks[:] = [entry for entry in step.batch.new_blocks if entry[0] not in running.free_rows]

    def _extend(self, sequence: Sequence, step: Step) -> None:
        pool = self._ledger.pool
        sequence.blocks += pool.allocate(1)
        sequence.room += pool.block_size
        step.batch.new_blocks.append((sequence.row, len(sequence.blocks) - 1, sequence.blocks[-1]))

    def _plan_chunks(self, step: Step) -> None:
        for sequence in list(self._ledger.running.prefilling):
            if not self._has_room(step):
                break
            self._add_chunk(sequence, step)

    def _has_room(self, step: Step) -> bool:
        """Whether one more prompt may begin a chunk. A step of prefills takes no single tokens beside longer chunks."""
        least = 2 if step.kind is StepKind.PREFILL and self._limits.chunk_tokens > 1 else 1
        return step.rows_left > 0 and step.tokens_left >= least

    def _add_chunk(self, sequence: Sequence, step: Step) -> None:
        step.add_chunk(sequence, min(sequence.remaining, step.tokens_left, self._limits.chunk_tokens))
        if sequence.state is State.PREFILLING and sequence.remaining <= 1:
            self._ledger.running.start_decoding(sequence)

    def _plan_admissions(self, step: Step, now: float) -> None:
        ledger = self._ledger
        skipped: list[Sequence] = []
        while self._may_admit(step, skipped) and (sequence := ledger.queue.pop()):
            if not self._hold_blocks(sequence, step):
                skipped.append(sequence)
                continue
            ledger.admit(sequence, now)
            step.admit(sequence)
            self._add_chunk(sequence, step)
            for other in skipped:
                other.bypassed += 1
        for sequence in skipped:
            ledger.queue.push(sequence)

    def _may_admit(self, step: Step, skipped: list[Sequence]) -> bool:
        if not self._ledger.running.free_rows or not self._has_room(step) or len(skipped) == LOOKAHEAD:
            return False
        return all(sequence.bypassed < MAX_BYPASSES for sequence in skipped)

    def _hold_blocks(self, sequence: Sequence, step: Step) -> bool:
        """Gives a waiting sequence what it must hold to run, if that is free and it suits the kind of step."""
        if self._try_to_hold(sequence, step):
            return True
        # Nobody runs, so blocks that are held are held by waiting forks, which can do without.
        return not len(self._ledger.running) and self._ledger.drop_forks() and self._try_to_hold(sequence, step)

    def _try_to_hold(self, sequence: Sequence, step: Step) -> bool:
        ledger = self._ledger
        pool = ledger.pool
        if sequence in ledger.forks:
            if step.kind is StepKind.PREFILL or not pool.num_free:
                return False
            ledger.hold_fork(sequence, step)
            return True
        if step.kind is StepKind.DECODE and (len(sequence.tokens) - 1) % pool.block_size:
            return False  # more than one token is left whatever the prefix cache holds
        spare = pool.num_free - self._watermark()
        if spare < sequence.wanted and step.batch.step < sequence.recheck:
            return False
        cached = ledger.find_prefix(sequence)
        decodes = len(sequence.tokens) - len(cached) * pool.block_size == 1
        if step.kind is (StepKind.PREFILL if decodes else StepKind.DECODE):
            return False
        sequence.wanted = ledger.blocks_to_admit(sequence) - len(cached) + pool.num_resting(cached)
        if spare < sequence.wanted:
            sequence.recheck = step.batch.step + RECHECK_STEPS
            return False
        ledger.hold_prefix(sequence, cached)
        return True

    def _watermark(self) -> int:
        """Free blocks that admission leaves alone, so that those who run can go on for a while: one each, and 1 %."""
        running = len(self._ledger.running)
        return running + self._ledger.pool.capacity // 100 if running else 0

    def _yield_to_head(self) -> None:
        """Preempts sequences of lower priority if that lets the head of the queue in."""
        ledger = self._ledger
        head = ledger.queue.head()
        if head is None:
            return
        wanted = 1 if head in ledger.forks else (head.wanted or ledger.blocks_to_admit(head)) + self._watermark()
        lacking = wanted - ledger.pool.num_free
        if ledger.running.free_rows and lacking <= 0:
            return
        victims = []
        for sequence in ledger.running.yielding():
            if sequence.rank < head.rank:
                break
            if sequence.priority >= head.priority:
                continue
            victims.append(sequence)
            lacking -= ledger.pool.num_returned(sequence.blocks)
            if lacking <= 0:
                for victim in victims:
                    ledger.preempt(victim)
                return

    def _close(self, step: Step) -> Step:
        ledger = self._ledger
        for sequence, _, _ in step.chunks:
            sequence.index_blocks(ledger.pool)
        ledger.pool.release(step.sources)
        ledger.fork_leaders()
        step.close()
        self._limits.pad(step.batch, ledger.pool.blocks_for(step.positions))
        return step
