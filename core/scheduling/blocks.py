"""KV blocks: who holds them, which are free, and which still hold a prefix worth finding again. Integers only.

A block is in one of three states:

* held: its reference count is positive, some block tables name it;
* resting: nobody holds it, but its contents are indexed, so that a later prompt may find and share them;
* blank: nobody holds it and nothing is known about its contents.

Resting and blank blocks are both *free*. One ordered map is the free list and the LRU at once: blank blocks stand at
its front, resting ones behind them in the order they were released, and allocation takes from the front, so that a
prefix is forgotten only when no blank block is left, the least recently used first.

Block 0 belongs to nobody: padded block-table entries point there. Which positions of a sequence a block holds, and when
its contents are sure enough to be indexed, is the scheduler's business (`sequence.py`, `scheduler.py`).
"""

from __future__ import annotations

import secrets
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

HASH_BYTES = 16
"""128 bits, keyed: two prefixes collide by accident or by design only for one who knows the pool's key."""


class PrefixIndex:
    """A bijection between hashes of prefixes and the blocks that hold their last part.

    A block's hash covers its own tokens and, through its parent's hash, every token before them and the salt, so one
    lookup a block compares whole prefixes.
    """

    def __init__(self, block_size: int, key: bytes) -> None:
        self._block_size = block_size
        self._keyed = blake2b(key=key, digest_size=HASH_BYTES)
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def root(self, salt: str) -> bytes:
        """The parent of a first block. Prompts with different salts share no hash."""
        state = self._keyed.copy()
        state.update(salt.encode())
        return state.digest()

    def chain(self, parent: bytes, tokens: Sequence[int]) -> list[bytes]:
        """Hashes of the full blocks of `tokens`, which follow the block whose hash is `parent`."""
        packed, size, hashes = array("i", tokens), self._block_size, []
        for end in range(size, len(packed) + 1, size):
            state = self._keyed.copy()
            state.update(parent)
            state.update(packed[end - size : end])
            parent = state.digest()
            hashes.append(parent)
        return hashes

    def find(self, hashes: Iterable[bytes]) -> list[int]:
        """Blocks of the longest indexed prefix."""
        blocks = []
        for prefix in hashes:
            block = self._block_of.get(prefix)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def insert(self, prefix: bytes, block: int) -> None:
        """Lets later prompts find a block, which its holders never write to again.

        Does nothing when another block already holds the same prefix: the first one stays the one found.
        """
        if prefix not in self._block_of and block not in self._hash_of:
            self._block_of[prefix] = block
            self._hash_of[block] = prefix

    def holds(self, block: int) -> bool:
        """Whether the block can be found."""
        return block in self._hash_of

    def forget_block(self, block: int) -> bool:
        """Makes a block impossible to find; returns whether it could be found."""
        prefix = self._hash_of.pop(block, None)
        if prefix is None:
            return False
        del self._block_of[prefix]
        return True

    def forget(self, prefix: bytes) -> int | None:
        """Makes a prefix impossible to find; returns the block that held it."""
        block = self._block_of.pop(prefix, None)
        if block is not None:
            del self._hash_of[block]
        return block

    def check(self) -> list[str]:
        """Sentences about entries that are not mutual."""
        problems = [
            f"hash {prefix.hex()} leads to block {block}, which does not lead back"
            for prefix, block in self._block_of.items()
            if self._hash_of.get(block) != prefix
        ]
        if len(self._block_of) != len(self._hash_of):
            problems.append(f"{len(self._block_of)} hashes lead to {len(self._hash_of)} blocks")
        return problems


class BlockPool:
    """Reference counts of blocks 1 to `num_blocks - 1`, the free list, and the prefix index over them.

    Methods that take blocks or references raise `ValueError` when the caller's books are wrong: more blocks wanted
    than are free, or a block released that nobody holds.
    """

    def __init__(
        self, num_blocks: int, block_size: int, *, prefix_caching: bool = True, hash_key: bytes | None = None
    ) -> None:
        if num_blocks < 2 or block_size < 1:
            raise ValueError(
                f"{num_blocks} blocks of {block_size} tokens hold nothing: block 0 is reserved, so at least 2 blocks "
                "of 1 token are needed"
            )
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.evictions = 0
        """Prefixes forgotten to make room."""
        self._references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self.prefixes = PrefixIndex(block_size, hash_key or secrets.token_bytes(32))
        """Blocks found there are not held: `share` them or forget the answer."""

    @property
    def capacity(self) -> int:
        """Blocks that sequences may hold in all."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, resting ones included."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - 1 - len(self._free)

    def blocks_for(self, positions: int) -> int:
        """Blocks that so many positions of one sequence take."""
        return -(-positions // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Takes blocks with one reference each. What they held is forgotten in the same operation."""
        if count > len(self._free):
            raise ValueError(f"{count} blocks wanted, {len(self._free)} are free")
        return [self._take() for _ in range(count)]

    def share(self, blocks: Iterable[int]) -> None:
        """Adds a reference to each block; resting blocks are held again."""
        references = self._references
        for block in blocks:
            if references[block] == 0:
                del self._free[block]
            references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drops a reference to each block of a table, last to first.

        The end of a prefix is useless without its start, so the end is put where it is evicted sooner.
        """
        references = self._references
        for block in reversed(blocks):
            left = references[block] - 1
            if left < 0:
                raise ValueError(f"block {block} is released, but nobody holds it")
            references[block] = left
            if left == 0:
                self._free[block] = None
                if not self.prefixes.holds(block):
                    self._free.move_to_end(block, last=False)

    def writable(self, block: int) -> tuple[int, int] | None:
        """Copy-on-write: None when the caller, who holds `block`, may write to it; else (source, destination).

        The destination is newly allocated and the caller's. The source stays held by the caller too, who releases it
        only after the batch that copies has been planned: until then nothing may be planned to overwrite it.
        """
        if self._references[block] == 1 and not self.prefixes.holds(block):
            return None
        return block, self._take()

    def num_resting(self, blocks: Iterable[int]) -> int:
        """How many of these would leave the free list if they were shared."""
        references = self._references
        return sum(1 for block in blocks if references[block] == 0)

    def num_returned(self, blocks: Iterable[int]) -> int:
        """How many of these would become free if their holder released them."""
        references = self._references
        return sum(1 for block in blocks if references[block] == 1)

    def forget(self, hashes: Iterable[bytes]) -> None:
        """Nobody finds these prefixes any more. Those who hold the blocks keep them."""
        for prefix in hashes:
            block = self.prefixes.forget(prefix)
            if block is not None and self._references[block] == 0:
                self._free.move_to_end(block, last=False)

    def check(self, tables: Iterable[Sequence[int]] | None = None) -> list[str]:
        """Sentences about broken invariants; empty when all is well.

        With the block tables of all holders the reference counts are compared with them.
        """
        references = self._references
        problems = self.prefixes.check()
        free = self._free
        if 0 in free or references[0] or self.prefixes.holds(0):
            problems.append("block 0 is in use")
        for block in range(1, self.num_blocks):
            if (block in free) != (references[block] == 0):
                problems.append(f"block {block} has {references[block]} references and free is {block in free}")
        if tables is not None:
            counted = [0] * self.num_blocks
            for table in tables:
                for block in table:
                    counted[block] += 1
            problems += [
                f"block {block} has {references[block]} references, but {count} tables name it"
                for block, count in enumerate(counted)
                if references[block] != count
            ]
        return problems

    def _take(self) -> int:
        if not self._free:
            raise ValueError(f"a block is wanted, but all {self.capacity} are held")
        block, _ = self._free.popitem(last=False)
        if self.prefixes.forget_block(block):
            self.evictions += 1
        self._references[block] = 1
        return block
