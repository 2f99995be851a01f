"""Every architecture and every rope against transformers, whichever way a sequence is cut into steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.models.conftest import Pair
from tests.support.model_driver import ModelDriver, Track
from tests.support.tiny_models import CASES, GENERATED, reference_greedy

RELATIVE = 1e-4
"""Of the largest logit, in float32."""

every_case = pytest.mark.parametrize("name", list(CASES))
Pairs = Callable[[str], Pair]


def close(ours: Tensor, theirs: Tensor) -> None:
    """Logits agree, and so does each row's likeliest token."""
    error = (ours - theirs).abs().max() / theirs.abs().max()
    assert error < RELATIVE
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def run(driver: ModelDriver, track: Track, counts: list[int]) -> Tensor:
    """The sequence alone, in chunks."""
    return torch.cat([driver.step([(track, count)])[0] for count in counts])


@every_case
def test_whole_prompt_in_one_step(pair: Pairs, name: str) -> None:
    case = pair(name)
    close(run(ModelDriver(case.ours, case.config), Track(case.tokens), [29]), case.logits)


@every_case
def test_prompt_in_odd_chunks(pair: Pairs, name: str) -> None:
    case = pair(name)
    close(run(ModelDriver(case.ours, case.config), Track(case.tokens), [1, 5, 3, 7, 2, 11]), case.logits)


@every_case
def test_decode_token_by_token(pair: Pairs, name: str) -> None:
    case = pair(name)
    close(run(ModelDriver(case.ours, case.config), Track(case.tokens), [11, *[1] * 18]), case.logits)


@every_case
def test_decodes_chunks_and_prompts_in_one_step(pair: Pairs, name: str) -> None:
    case = pair(name)
    driver = ModelDriver(case.ours, case.config)
    tracks = [Track(case.tokens) for _ in range(3)]
    rows: list[list[Tensor]] = [[], [], []]
    for counts in ([9, 0, 0], [1, 13, 0], [1, 1, 6], [1, 4, 23], [1, 11, 0], [16, 0, 0]):
        taking = [index for index in sorted(range(3), key=lambda index: counts[index] != 1) if counts[index]]
        logits = driver.step([(tracks[index], counts[index]) for index in taking])
        for index, part in zip(taking, logits, strict=True):
            rows[index].append(part)
    for parts in rows:
        close(torch.cat(parts), case.logits)


@every_case
def test_shared_prefix_blocks(pair: Pairs, name: str) -> None:
    case = pair(name)
    driver = ModelDriver(case.ours, case.config)
    first = Track(case.tokens)
    run(driver, first, [14])
    second = driver.share(first, case.tokens, num_blocks=3)
    close(run(driver, second, [6, 11]), case.logits[12:])
    close(run(driver, first, [15]), case.logits[14:])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.length_dependent])
def test_greedy_tokens(pair: Pairs, name: str) -> None:
    case = pair(name)
    expected = reference_greedy(case.theirs, case.tokens, GENERATED)
    assert ModelDriver(case.ours, case.config).greedy(case.tokens, GENERATED) == expected
