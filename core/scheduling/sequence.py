"""What the scheduler knows about one request and its sequences: tokens, blocks, progress. No policy here.

Positions count from 0. A sequence's *length* is the number of its tokens; of these the host knows `len(tokens)`, and
`in_flight` more were asked for in steps that it has not committed yet. Keys and values are written for positions below
`computed` by the batches scheduled so far; since batches execute in order, a later batch may rely on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from mainspring.core.request import RequestId, SamplingParams, Start, Submit
from mainspring.core.scheduling.blocks import BlockPool
from mainspring.core.scheduling.prompt_scores import PromptScores
from mainspring.core.speculation.outlook import Outlook

Rank = tuple[float, int]
"""Total order of sequences, smallest first: see `Request.rank`."""

AGEING_SECONDS = 10.0
"""One level of priority is worth this much waiting."""


class State(Enum):
    """Where a sequence stands."""

    WAITING = auto()
    """In the queue, or beside its request's first sequence until that one's prompt is scheduled."""
    PREFILLING = auto()
    """Holds a row; two tokens or more are to be computed before it yields one."""
    DECODING = auto()
    """Holds a row; the next token computed yields one."""
    RECALLED = auto()
    """Lost its row and blocks while results were in flight; returns to the queue with the last of them."""
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Request:
    """One `Submit` and the sequences generated for it."""

    submit: Submit
    number: int
    """Of the request's first sequence, in the order of submission; the others have the numbers after it."""
    arrival: float
    deadline: float | None
    scores: PromptScores | None = None
    """Of its prompt, if it asked for them."""
    sequences: list[Sequence] = field(default_factory=list)
    unforked: list[Sequence] = field(default_factory=list)
    """Sequences that wait for the first live one's prompt, to share its blocks."""
    live: int = 0
    """Sequences that have not finished."""
    started: bool = False
    """Whether any of them was ever admitted."""
    cached_tokens: int = 0
    """Tokens of the prompt that the prefix cache held at that first admission."""

    def rank(self, index: int) -> Rank:
        """Priority, ageing and arrival as one number that need not change while time passes.

        With linear ageing, `priority + waited / AGEING_SECONDS` orders two sequences the same way at any moment.
        """
        return self.arrival - self.submit.priority * AGEING_SECONDS, self.number + index


@dataclass(slots=True, eq=False)
class Sequence:
    """One of a request's sequences."""

    request: Request
    request_id: RequestId
    index: int
    rank: Rank
    priority: int
    params: SamplingParams
    seed: int
    tokens: list[int]
    """Prompt and generated tokens that the host knows."""
    num_prompt: int
    limit: int
    """Tokens at which the sequence ends by length."""
    min_length: int
    """Stop tokens end the sequence only past this many tokens."""
    stop_ids: frozenset[int]
    """Tokens that end the sequence, the model's own included unless the request ignores them."""

    state: State = State.WAITING
    last: int = 0
    """Positions that are ever computed: the last token's keys and values are not needed."""
    computed: int = 0
    in_flight: int = 0
    discarded: int = 0
    """How many of the results in flight are worthless and will be dropped."""
    row: int = -1
    blocks: list[int] = field(default_factory=list)
    room: int = 0
    """Positions that `blocks` hold."""
    hashes: list[bytes] = field(default_factory=list)
    """Prefix hashes of the leading full blocks, as far as they were needed; they outlive the blocks."""
    indexed: int = 0
    """Leading blocks that were offered to the prefix index."""
    own_from: int | None = None
    """Blocks from this one on were computed by this sequence; those before came from the prefix cache."""

    preemptions: int = 0
    bypassed: int = 0
    """Sequences admitted past this one since it stood in their way."""
    wanted: int = 0
    """Blocks that the last attempt to admit it lacked."""
    recheck: int = 0
    """Step from which the prefix cache is worth asking again after such an attempt."""
    start: Start | None = None
    """Facts for the first delta, until it is sent."""
    admitted: bool = False
    """Whether it ever held a row."""

    drafts: list[int] = field(default_factory=list)
    """What the step in flight verifies; it sits out until that is committed."""
    verifying: bool = False
    """Whether such a step is in flight."""
    outlook: Outlook | None = None
    """How well its tokens could be guessed so far, once somebody looked."""

    def __post_init__(self) -> None:
        self.last = self.limit - 1

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one comes out."""
        return len(self.tokens) + self.in_flight - self.computed

    def extend_hashes(self, pool: BlockPool) -> None:
        """Hashes the full blocks of known tokens that have none yet."""
        size = pool.block_size
        done, full = len(self.hashes), len(self.tokens) // size
        if full > done and pool.prefix_caching:
            parent = self.hashes[-1] if done else pool.prefixes.root(self.request.submit.cache_salt)
            self.hashes += pool.prefixes.chain(parent, self.tokens[done * size : full * size])

    def index_blocks(self, pool: BlockPool) -> None:
        """Offers full blocks to the prefix index: all their tokens known, all computed by scheduled batches."""
        full = min(self.computed, len(self.tokens)) // pool.block_size
        if full > self.indexed and pool.prefix_caching:
            self.extend_hashes(pool)
            for number in range(self.indexed, full):
                pool.prefixes.insert(self.hashes[number], self.blocks[number])
            self.indexed = full

    def own_hashes(self) -> list[bytes]:
        """Hashes of the blocks whose contents this sequence computed."""
        return self.hashes[self.own_from :] if self.own_from is not None else []

    def give_up_blocks(self, pool: BlockPool) -> None:
        """Releases every block and all progress but the tokens. Sure contents stay findable."""
        self.index_blocks(pool)
        pool.release(self.blocks)
        self.blocks = []
        self.room = self.computed = self.indexed = 0
