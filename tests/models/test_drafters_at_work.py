"""Drafters behind a target, stepped by hand: a copy of the target drafts what the target chooses, whatever happened
before; heads draft what they would in one piece."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mainspring.core.request import SamplingParams
from tests.models.conftest import Pair, load
from tests.support import tiny_drafts, tiny_models
from tests.support.drafting_by_hand import NUM_BLOCKS, DraftingByHand, Written

LENGTH = 60
DRAWN = SamplingParams(temperature=1.0, top_p=0.95)


@pytest.fixture
def target(pair: Callable[[str], Pair]) -> Pair:
    return pair("llama")


def with_drafter(target: Pair, path: Path, count: int, *, max_tokens: int = 1000) -> DraftingByHand:
    """The target, and behind it whatever lies at a path."""
    model, config = load(target.path, LENGTH)
    setup = DraftingByHand(model, config, LENGTH)
    setup.draft_with(path, count, max_tokens=max_tokens)
    return setup


def sequences(*lengths: int, params: SamplingParams = DRAWN) -> list[Written]:
    generator = random.Random(11)
    free = list(range(1, NUM_BLOCKS))
    generator.shuffle(free)
    return [
        Written(
            row=[2, 0, 3, 1][index],
            tokens=[generator.randrange(tiny_models.VOCABULARY) for _ in range(length)],
            blocks=[free.pop() for _ in range(14 if len(lengths) == 4 else 15)],
            params=params if index % 2 else SamplingParams(),
            seed=index,
        )
        for index, length in enumerate(lengths)
    ]


def generate(setup: DraftingByHand, rows: list[Written], steps: int) -> None:
    setup.step([(row, len(row.tokens) - row.computed) for row in rows])
    for _ in range(steps):
        setup.step([(row, 1) for row in rows])


def plain(target: Pair, *lengths: int, count: int) -> list[list[int]]:
    model, config = load(target.path, LENGTH)
    setup, rows = DraftingByHand(model, config, LENGTH), sequences(*lengths)
    generate(setup, rows, count - 1)
    return [row.tokens for row in rows]


# --- a draft model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 6])
def test_a_copy_of_the_target_is_always_right(target: Pair, count: int) -> None:
    setup, rows = with_drafter(target, target.path, count), sequences(7, 1, 8, 12)
    generate(setup, rows, 4)
    assert all(row.accepted == [count] * 4 for row in rows)
    expected = plain(target, 7, 1, 8, 12, count=30)
    assert all(known[: len(row.tokens)] == row.tokens for row, known in zip(rows, expected, strict=True))


def test_it_is_right_after_any_mistake(target: Pair) -> None:
    """Wrong drafts leave their keys behind, in the sequence's own blocks and in scratch."""
    setup, rows = with_drafter(target, target.path, 5), sequences(6, 3, 9, 4)
    generator = random.Random(2)
    setup.step([(row, len(row.tokens)) for row in rows])
    spoiled = [[], [], [], []]
    for _ in range(6):
        for row, kept in zip(rows, spoiled, strict=True):
            right = generator.randrange(6)
            row.drafts = row.drafts[: generator.randint(right, 5)]
            kept.append(min(right, len(row.drafts)))
            for place in range(right, len(row.drafts)):
                row.drafts[place] = (row.drafts[place] + 1) % tiny_models.VOCABULARY
        if any(len(row.tokens) > LENGTH - 8 for row in rows):
            break
        drafted = [bool(row.drafts) for row in rows]
        setup.step([(row, 1) for row in rows])
        for row, kept, had in zip(rows, spoiled, drafted, strict=True):
            assert not had or row.accepted[-1] == kept[-1]


def test_it_catches_up_when_somebody_wants_drafts(target: Pair) -> None:
    """Prompts in chunks and tokens decoded without it are read when they are needed, some at each step."""
    setup, rows = with_drafter(target, target.path, 3, max_tokens=13), sequences(21, 10)
    setup.step([(rows[0], 9), (rows[1], 10)], wanting=False)
    setup.step([(rows[0], 12), (rows[1], 1)], wanting=False)
    for _ in range(3):
        setup.step([(row, 1) for row in rows], wanting=False)
    drafted = [len(setup.step([(row, 1) for row in rows])) for _ in range(4)]
    # 26 and 16 tokens, 13 a step: the first row's two steps, then the rest is for the other.
    assert drafted == [0, 0, 1, 2]
    setup.step([(row, 1) for row in rows])
    assert [row.accepted for row in rows] == [[3, 3], [3]]


def test_blocks_of_a_prefix_cache_are_not_read_again(target: Pair) -> None:
    setup, (first, second) = with_drafter(target, target.path, 3, max_tokens=8), sequences(13, 13)
    first.params = second.params = SamplingParams()
    for count in (8, 5):
        setup.step([(first, count)])
    setup.step([(first, 1)])
    second.tokens[:9] = first.tokens[:9]
    second.blocks[:2], second.computed = first.blocks[:2], 8
    # What is left fits one pass only if the two shared blocks count as read.
    assert len(setup.step([(second, 5)])) == 1
    setup.step([(second, 1)])
    assert second.accepted == [3]


def test_the_end_of_the_longest_sequence_is_no_obstacle(target: Pair) -> None:
    setup, rows = with_drafter(target, target.path, 4), sequences(LENGTH - 3, 5)
    setup.step([(row, len(row.tokens)) for row in rows])
    rows[0].drafts = rows[0].drafts[:1]
    setup.step([(row, 1) for row in rows])
    assert [row.accepted for row in rows] == [[1], [4]]
    assert len(rows[0].tokens) == LENGTH


def test_a_copied_block_is_copied_for_the_drafter_too(target: Pair) -> None:
    setup, (row,) = with_drafter(target, target.path, 3), sequences(6)
    generate(setup, [row], 1)
    assert setup.drafter is not None
    source, other = row.blocks[0], next(block for block in range(1, NUM_BLOCKS) if block not in row.blocks)
    setup.device.copy_blocks(setup.kv, [(source, other)])
    setup.drafter.copy_blocks([(source, other)])
    setup.table.blocks[row.row, 0] = other
    setup.step([(row, 1)])
    setup.step([(row, 1)])
    assert row.accepted == [3, 3, 3]


# --- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_eagle_drafts_the_same_in_pieces(target: Pair, tmp_path: Path, kind: str) -> None:
    """Against the same head over the whole sequence at once, with a cache of its own."""
    if kind == "eagle":
        tiny_drafts.eagle(tmp_path, own_ends=False)
    else:
        tiny_drafts.eagle3(tmp_path)
    count = 4
    setup, rows = with_drafter(target, tmp_path, count), sequences(11, 6)
    setup.step([(rows[0], 5), (rows[1], 6)])
    setup.step([(rows[0], 6), (rows[1], 1)])
    for _ in range(3):
        setup.step([(row, 1) for row in rows])
    for row in rows:
        assert row.drafts == in_one_piece(target, tmp_path, row, count)


@torch.inference_mode()
def in_one_piece(target: Pair, path: Path, row: Written, count: int) -> list[int]:
    fresh = with_drafter(target, path, count)
    again = Written(row.row, row.tokens[:-1], row.blocks, params=row.params, seed=row.seed)
    (drafts,) = fresh.step([(again, len(again.tokens))])
    assert again.tokens == row.tokens
    return drafts


def test_heads_without_memory_draft_from_the_last_good_state(target: Pair, tmp_path: Path) -> None:
    tensors = tiny_drafts.medusa(tmp_path)
    setup, rows = with_drafter(target, tmp_path, 2), sequences(5, 9)
    for row in rows:
        row.params = SamplingParams()
    generate(setup, rows, 3)
    for row in rows:
        with torch.inference_mode():
            states = target.theirs.model(torch.tensor([row.tokens[:-1]])).last_hidden_state[0, -1]
            expected = []
            for head in range(2):
                x = states
                for block in range(2):
                    linear = f"{head}.{block}.linear"
                    x = x + torch.nn.functional.silu(x @ tensors[f"{linear}.weight"].T + tensors[f"{linear}.bias"])
                expected.append(int((x @ tensors[f"{head}.2.weight"].T).argmax()))
        assert row.drafts == expected
