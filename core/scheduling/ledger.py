"""Who waits, who runs, who holds which blocks, and every move between: the books that planning and commit share.

Each move leaves the books balanced (`Ledger.check` says how). Which move to make is decided in `planner.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from mainspring.core.metrics import Stats
from mainspring.core.request import RequestId, Start
from mainspring.core.scheduling.blocks import BlockPool
from mainspring.core.scheduling.running import Running, is_pinned
from mainspring.core.scheduling.sequence import Request, Sequence, State
from mainspring.core.scheduling.step import Step
from mainspring.core.scheduling.waiting import WaitingQueue


class Ledger:
    """The live requests. A sequence is in the queue, holds a row, or is recalled; or it waits for its leader.

    The *leader* of a request of several sequences is the one that computes the prompt for the others.
    """

    def __init__(self, pool: BlockPool, max_sequences: int) -> None:
        self.pool = pool
        self.requests: dict[RequestId, Request] = {}
        self.queue = WaitingQueue()
        self.running = Running(max_sequences)
        self.forks: dict[Sequence, None] = {}
        """Queued sequences that hold the blocks of their prompt already, oldest first."""
        self.counters = Stats(blocks_total=pool.capacity)
        self.live = 0
        """Sequences that have not finished."""
        self.last_wait = 0.0
        """Seconds that the sequence admitted last had waited."""
        self._leaders: dict[Sequence, None] = {}
        """Running leaders."""

    def enroll(self, request: Request) -> None:
        """Takes a new request in; its first sequence is the leader."""
        self.requests[request.submit.request_id] = request
        request.live = len(request.sequences)
        request.unforked = request.sequences[1:]
        self.live += request.live
        self.queue.push(request.sequences[0])

    def find_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks of the cached prefix; never all of the tokens, since the last one has to be computed.

        Nor any whose logits are wanted: a prompt that is to be scored finds only what was computed for its request.
        """
        sequence.extend_hashes(self.pool)
        positions, scores = len(sequence.tokens) - 1, sequence.request.scores
        if scores is not None:
            positions = min(positions, scores.settled)
        full = positions // self.pool.block_size
        return self.pool.prefixes.find(islice(sequence.hashes, full))

    def blocks_to_admit(self, sequence: Sequence) -> int:
        """Blocks that a sequence must get at admission: for all known tokens, or for its whole life when pinned."""
        return self.pool.blocks_for(sequence.last if is_pinned(sequence) else len(sequence.tokens))

    def hold_prefix(self, sequence: Sequence, cached: list[int]) -> None:
        """Gives a sequence the blocks of its cached prefix and new ones for the rest."""
        pool = self.pool
        pool.share(cached)
        sequence.blocks = cached + pool.allocate(self.blocks_to_admit(sequence) - len(cached))
        sequence.indexed = len(cached)
        sequence.computed = len(cached) * pool.block_size
        own_from = sequence.own_from
        sequence.own_from = len(cached) if own_from is None else min(own_from, len(cached))

    def hold_fork(self, sequence: Sequence, step: Step) -> None:
        """Gives a fork a block of its own for the last token of the prompt, which it computes itself."""
        pool, blocks = self.pool, sequence.blocks
        if sequence.computed % pool.block_size == 0:
            blocks += pool.allocate(1)
        elif pair := pool.writable(blocks[-1]):
            source, blocks[-1] = pair
            step.batch.copies.append(pair)
            step.sources.append(source)
        del self.forks[sequence]

    def admit(self, sequence: Sequence, now: float) -> None:
        """Gives a row to a sequence that holds its blocks and has left the queue."""
        request, counters = sequence.request, self.counters
        sequence.room = len(sequence.blocks) * self.pool.block_size
        self.running.add(sequence)
        if request.unforked:
            self._leaders[sequence] = None
        if not request.started:
            request.started = True
            request.cached_tokens = sequence.computed
            counters.prompt_tokens += sequence.num_prompt
            counters.prefix_queries += sequence.num_prompt
            counters.prefix_hits += sequence.computed
        if not sequence.admitted:
            sequence.admitted = True
            self.last_wait = now - request.arrival
            sequence.start = Start(request.cached_tokens, sequence.seed, self.last_wait)

    def fork_leaders(self) -> None:
        """Hands the blocks of every prompt that is now wholly scheduled to the sequences that wait for it."""
        for leader in [leader for leader in self._leaders if leader.computed >= leader.num_prompt]:
            del self._leaders[leader]
            waiting, leader.request.unforked = leader.request.unforked, []
            for sequence in waiting:
                self._fork(leader, sequence)

    def make_room(self) -> None:
        """Frees blocks where it hurts least: those of a waiting fork, else those of the least urgent sequence.

        Raises `RuntimeError` when nobody can give way, which planning rules out: pinned sequences want no more blocks.
        """
        if self.forks:
            self._drop_fork(next(reversed(self.forks)))
            return
        victim = next(self.running.yielding(), None)
        if victim is None:
            raise RuntimeError(f"all {self.pool.capacity} blocks are held and no sequence can give way")
        self.preempt(victim)

    def drop_forks(self) -> bool:
        """Takes the blocks of all waiting forks; returns whether there were any."""
        dropped = bool(self.forks)
        for sequence in list(self.forks):
            self._drop_fork(sequence)
        return dropped

    def preempt(self, sequence: Sequence) -> None:
        """Takes row and blocks from a running sequence, which keeps its tokens and its place by rank."""
        sequence.preemptions += 1
        self.counters.preemptions += 1
        self._vacate(sequence)
        self._requeue(sequence)

    def accepts_late(self, sequence: Sequence) -> bool:
        """Whether a result still counts for a sequence that no longer runs."""
        if sequence.state is not State.RECALLED:
            return False
        if not sequence.discarded:
            return True
        sequence.discarded -= 1
        sequence.in_flight -= 1
        self.return_recalled(sequence)
        return False

    def return_recalled(self, sequence: Sequence) -> None:
        """Queues a recalled sequence again if nothing of it is in flight any more."""
        if sequence.state is State.RECALLED and not sequence.in_flight:
            self.queue.push(sequence)

    def retire(self, sequence: Sequence) -> None:
        """The sequence has ended: whatever it holds is given back, and its request ends with the last of them."""
        request = sequence.request
        if sequence in request.unforked:
            request.unforked.remove(sequence)
        else:
            self._withdraw(sequence)
            if request.unforked:
                self.queue.push(request.unforked.pop(0))
        sequence.state = State.FINISHED
        request.live -= 1
        self.live -= 1
        if not request.live:
            del self.requests[request.submit.request_id]
            request.sequences = []

    def distrust(self, sequences: list[Sequence], later: Iterable[Step]) -> None:
        """What these sequences computed is worthless: nobody finds it any more, and who found it starts again.

        Only sequences admitted in `later`, the uncommitted steps, can have found it and not be known to be bad. A chain
        of finds needs no search: whoever found what the second computed has the first's prefixes in its own chain.
        Siblings share blocks that have no hash yet, so distrust spreads to them by their request.
        """
        requests = {sequence.request for sequence in sequences}
        # A dictionary keeps its order and a set of bytes does not: one seed must stay one history.
        tainted = dict.fromkeys(prefix for sequence in sequences for prefix in sequence.own_hashes())
        for sequence in sequences:
            sequence.computed = 0
        self.pool.forget(tainted)
        for step in later:
            for sequence in step.admitted:
                if sequence not in sequences and (
                    sequence.request in requests or not tainted.keys().isdisjoint(sequence.hashes)
                ):
                    self.pool.forget(sequence.own_hashes())
                    self._restart(sequence)
                    requests.add(sequence.request)
        self._score_again(requests, sequences)
        for fork in [fork for fork in self.forks if fork.request in requests]:
            self._drop_fork(fork)

    def check(self) -> list[str]:
        """Sentences about books that do not balance; empty when all is well."""
        running = list(self.running)
        problems = self.pool.check([sequence.blocks for sequence in (*running, *self.forks)])
        rows = sorted([*self.running.free_rows, *(sequence.row for sequence in running)])
        if rows != list(range(len(rows))):
            problems.append(f"rows are lost or given out twice: {rows}")
        if strays := [leader for leader in self._leaders if leader.row < 0]:
            problems.append(f"{len(strays)} leaders do not run")
        live = sum(request.live for request in self.requests.values())
        if live != self.live:
            problems.append(f"{live} sequences live in requests, {self.live} are counted")
        for sequence in running:
            if sequence.room != len(sequence.blocks) * self.pool.block_size or sequence.computed > sequence.room:
                problems.append(f"row {sequence.row} computed {sequence.computed} positions in {sequence.blocks}")
        return problems

    def _fork(self, leader: Sequence, sequence: Sequence) -> None:
        computed = leader.num_prompt - 1
        sequence.blocks = leader.blocks[: self.pool.blocks_for(computed)]
        if sequence.blocks:
            self.pool.share(sequence.blocks)
            self.forks[sequence] = None
            sequence.computed = computed
            sequence.indexed = computed // self.pool.block_size
            sequence.hashes = list(leader.hashes)
            sequence.own_from = leader.own_from
        self.queue.push(sequence)

    def _drop_fork(self, sequence: Sequence) -> None:
        del self.forks[sequence]
        sequence.give_up_blocks(self.pool)

    def _vacate(self, sequence: Sequence) -> None:
        self._leaders.pop(sequence, None)
        self.running.remove(sequence)
        sequence.give_up_blocks(self.pool)

    def _requeue(self, sequence: Sequence) -> None:
        sequence.state = State.RECALLED
        self.return_recalled(sequence)

    def _restart(self, sequence: Sequence) -> None:
        if sequence.state in (State.PREFILLING, State.DECODING):
            sequence.computed = 0
            self._vacate(sequence)
            sequence.discarded = sequence.in_flight
            self._requeue(sequence)
        elif sequence.state is State.RECALLED:
            sequence.discarded = sequence.in_flight

    def _score_again(self, requests: set[Request], but: list[Sequence]) -> None:
        """Prompt log-probabilities that steps in flight were to give are lost: whoever is past them starts again."""
        for request in requests:
            if request.scores is not None and request.scores.forget_open():
                for sequence in request.sequences:
                    if sequence not in but:
                        self._restart(sequence)

    def _withdraw(self, sequence: Sequence) -> None:
        if sequence.state is State.WAITING:
            self.queue.discard(sequence)
            if sequence in self.forks:
                self._drop_fork(sequence)
        elif sequence.state is not State.RECALLED:
            self._vacate(sequence)
