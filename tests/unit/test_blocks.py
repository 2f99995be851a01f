"""BlockPool and PrefixIndex: who holds a block, and who may find it."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mainspring.core.scheduling.blocks import BlockPool, PrefixIndex

SIZE = 4


def make_pool(num_blocks: int = 8) -> BlockPool:
    return BlockPool(num_blocks, SIZE, hash_key=b"test")


def indexed(pool: BlockPool, tokens: list[int]) -> tuple[list[bytes], list[int]]:
    """Blocks that hold these tokens, held once and findable."""
    hashes = pool.prefixes.chain(pool.prefixes.root(""), tokens)
    blocks = pool.allocate(len(hashes))
    for prefix, block in zip(hashes, blocks, strict=True):
        pool.prefixes.insert(prefix, block)
    return hashes, blocks


def test_block_zero_is_never_given_out():
    assert 0 not in make_pool(5).allocate(4)


def test_a_pool_too_small_to_hold_anything_is_refused():
    with pytest.raises(ValueError, match="1 blocks of 4 tokens hold nothing"):
        BlockPool(1, SIZE)


def test_allocating_more_than_is_free_takes_nothing():
    pool = make_pool(4)
    with pytest.raises(ValueError, match="4 blocks wanted, 3 are free"):
        pool.allocate(4)
    assert pool.num_free == 3


def test_releasing_a_block_that_nobody_holds_is_an_error():
    pool = make_pool()
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(ValueError, match="nobody holds it"):
        pool.release(blocks)


def test_a_shared_block_is_free_only_after_its_last_holder():
    pool = make_pool()
    blocks = pool.allocate(2)
    pool.share(blocks)
    pool.release(blocks)
    assert pool.num_used == 2
    pool.release(blocks)
    assert pool.num_used == 0


def test_equal_prefixes_hash_alike_and_any_difference_before_changes_the_hash():
    index = PrefixIndex(SIZE, b"key")
    root = index.root("")
    tokens = list(range(12))
    assert index.chain(root, tokens) == index.chain(root, tokens)
    changed = index.chain(root, [99, *tokens[1:]])
    assert not set(changed) & set(index.chain(root, tokens))
    first, *rest = index.chain(root, tokens)
    assert index.chain(first, tokens[SIZE:]) == rest


def test_salts_and_keys_separate_prefixes():
    tokens = list(range(SIZE))
    one, other = PrefixIndex(SIZE, b"one"), PrefixIndex(SIZE, b"other")
    assert one.chain(one.root("a"), tokens) != one.chain(one.root("b"), tokens)
    assert one.chain(one.root("a"), tokens) != other.chain(other.root("a"), tokens)


def test_only_full_blocks_have_hashes():
    index = PrefixIndex(SIZE, b"key")
    assert [len(index.chain(index.root(""), list(range(count)))) for count in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]


def test_a_released_prefix_is_found_until_its_block_is_needed():
    pool = make_pool(4)
    hashes, blocks = indexed(pool, list(range(SIZE)))
    pool.release(blocks)
    assert pool.prefixes.find(hashes) == blocks
    pool.allocate(2)
    assert pool.prefixes.find(hashes) == blocks, "blank blocks go first"
    assert pool.allocate(1) == blocks
    assert pool.prefixes.find(hashes) == []
    assert pool.evictions == 1


def test_the_least_recently_used_prefix_goes_first_and_its_end_before_its_start():
    pool = make_pool(5)
    old_hashes, old = indexed(pool, [1] * 8)
    new_hashes, new = indexed(pool, [2] * 8)
    pool.release(old)
    pool.release(new)
    pool.share(old)
    pool.release(old)
    assert pool.allocate(1) == [new[1]]
    assert pool.prefixes.find(new_hashes) == new[:1]
    assert pool.prefixes.find(old_hashes) == old


def test_a_prefix_held_twice_is_found_in_the_first_block_only():
    pool = make_pool()
    hashes, first = indexed(pool, list(range(SIZE)))
    _, second = indexed(pool, list(range(SIZE)))
    pool.release(second)
    assert pool.prefixes.find(hashes) == first
    assert not pool.check([first])


def test_a_forgotten_prefix_is_not_found_though_its_holder_keeps_the_block():
    pool = make_pool()
    hashes, blocks = indexed(pool, list(range(2 * SIZE)))
    pool.forget(hashes)
    assert pool.prefixes.find(hashes) == []
    assert pool.num_used == 2
    pool.release(blocks)
    assert not pool.check([])


def test_only_a_private_unfindable_block_is_written_in_place():
    pool = make_pool()
    [private] = pool.allocate(1)
    assert pool.writable(private) is None
    pool.share([private])
    source, destination = pool.writable(private)
    assert source == private != destination
    _, [findable] = indexed(pool, list(range(SIZE)))
    assert pool.writable(findable)[0] == findable


def test_the_source_of_a_copy_stays_held_until_it_is_released():
    pool = make_pool(3)
    [shared] = pool.allocate(1)
    pool.share([shared])
    pool.writable(shared)
    pool.release([shared])
    assert pool.num_free == 0


class PoolMachine(RuleBasedStateMachine):
    """Holders that allocate, share, fork, write, index and release in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool(10)
        self.tables: list[list[int]] = []
        self.contents: dict[int, bytes] = {}
        """What was indexed of each block since it was last allocated."""

    @rule(count=st.integers(1, 4))
    def allocate(self, count: int) -> None:
        if count <= self.pool.num_free:
            table = self.pool.allocate(count)
            for block in table:
                self.contents.pop(block, None)
            self.tables.append(table)

    @rule(tokens=st.lists(st.integers(0, 1), min_size=SIZE, max_size=3 * SIZE))
    def prefill(self, tokens: list[int]) -> None:
        pool = self.pool
        hashes = pool.prefixes.chain(pool.prefixes.root(""), tokens)
        cached = pool.prefixes.find(hashes)
        assert [self.contents[block] for block in cached] == hashes[: len(cached)], "a hit holds other contents"
        if len(hashes) - len(cached) + pool.num_resting(cached) > pool.num_free:
            return
        pool.share(cached)
        fresh = pool.allocate(len(hashes) - len(cached))
        for prefix, block in zip(hashes[len(cached) :], fresh, strict=True):
            pool.prefixes.insert(prefix, block)
            self.contents[block] = prefix
        self.tables.append(cached + fresh)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.pool.share(table)
        self.tables.append(list(table))

    @precondition(lambda self: self.tables and self.pool.num_free)
    @rule(data=st.data())
    def write_to_the_last_block(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        others = [other for other in self.tables if other is not table]
        pair = self.pool.writable(table[-1])
        assert (pair is None) == (
            not any(table[-1] in other for other in others) and not self.pool.prefixes.holds(table[-1])
        )
        if pair is not None:
            source, table[-1] = pair
            self.contents.pop(table[-1], None)
            self.pool.release([source])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        hashes = [self.contents[block] for block in table if block in self.contents]
        self.pool.forget(hashes)
        assert all(self.pool.prefixes.find([prefix]) == [] for prefix in hashes)

    @invariant()
    def books_balance(self) -> None:
        assert not self.pool.check(self.tables)

    def teardown(self) -> None:
        for table in self.tables:
            self.pool.release(table)
        assert self.pool.num_used == 0


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPoolMachine = PoolMachine.TestCase


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (lambda pool: pool._references.__setitem__(1, 1), "block 1 has 1 references and free is True"),
        (lambda pool: pool._free.__setitem__(0, None), "block 0 is in use"),
        (lambda pool: pool.prefixes._block_of.__setitem__(b"x", 3), "does not lead back"),
    ],
)
def test_check_finds_damage(damage, found):
    pool = make_pool()
    assert not pool.check([])
    damage(pool)
    assert any(found in problem for problem in pool.check())
