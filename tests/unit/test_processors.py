"""Logits processors: which rows they get and what of them, what is refused, and the watermark with its detector."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import combinations
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from mainspring.core.errors import RequestError, StartupError
from mainspring.core.execution.sampling import SamplingTable
from mainspring.core.ops.sample import key_state, seed_key
from mainspring.core.processors.contract import LogitsProcessor, ProcessedRows
from mainspring.core.processors.forms import ProcessorForms
from mainspring.core.processors.loading import forms_of, load_processors
from mainspring.core.processors.stage import process
from mainspring.core.processors.watermark import DEFAULT_KEY, SALT, Watermark
from mainspring.core.request import LogitsProcessing, Parameter, SamplingParams
from mainspring.server import watermark as detector

VOCAB = 97


class Recorder(LogitsProcessor):
    """Adds `amount` to all scores and keeps what it was given, which only a test's may."""

    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("amount", "number", minimum=-10, maximum=10, default=1.0),
        Parameter("times", "integer", minimum=1, maximum=3, default=1),
    )
    history: ClassVar[int] = 3
    seen: ProcessedRows

    def process(self, logits_PV: Tensor, rows: ProcessedRows) -> Tensor:
        self.seen = rows
        return logits_PV.add_((rows.parameters["amount"] * rows.parameters["times"])[:, None])


class Doubler(LogitsProcessor):
    """Shows whether it came after the recorder."""

    order: ClassVar[int] = 1

    def process(self, logits_PV: Tensor, rows: ProcessedRows) -> Tensor:
        return logits_PV * 2


def here(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


PLACES = {"doubler": here(Doubler), "recorder": here(Recorder)}


def asks(*processors: tuple[str, tuple[float, ...]]) -> SamplingParams:
    return SamplingParams(processors=tuple(LogitsProcessing(*each) for each in processors))


def run(
    params: Sequence[SamplingParams], *, partition: bool, processors: dict[str, LogitsProcessor] | None = None
) -> tuple[Tensor, Tensor]:
    """Logits of rows 0, 1, ... before and after. Row i stands at position i and its tokens are 10 i, 10 i + 1, ..."""
    table = SamplingTable(len(params), VOCAB, (), processors=processors or load_processors(PLACES, VOCAB))
    for row, own in enumerate(params):
        table.admit(row, own, 0, 1)
    selection = table.select(np.arange(len(params)), torch.from_numpy, partition=partition)
    tokens = torch.arange(10 * len(params), dtype=torch.int32).reshape(len(params), 10)
    before = torch.randn(len(params), VOCAB, generator=torch.Generator().manual_seed(0))
    given = before.clone()
    after = process(given, selection.processing, tokens, torch.arange(len(params), dtype=torch.int32))
    assert torch.equal(given, before), "the raw logits must stay as they are"
    return before, after


@pytest.mark.parametrize("partition", [True, False])
def test_only_rows_that_asked_are_changed_each_by_its_own_numbers(partition: bool) -> None:
    before, after = run(
        [asks(), asks(("recorder", (2.0, 3))), asks(), asks(("recorder", (-1.0, 1)))], partition=partition
    )
    torch.testing.assert_close(after - before, torch.tensor([0.0, 6.0, 0.0, -1.0])[:, None].expand(-1, VOCAB))


@pytest.mark.parametrize("partition", [True, False])
def test_they_apply_in_their_own_order_not_the_request_s(partition: bool) -> None:
    one, other = ("recorder", (2.0, 1)), ("doubler", ())
    before, after = run([asks(one, other), asks(other, one)], partition=partition)
    torch.testing.assert_close(after, (before + 2) * 2)


def test_a_processor_sees_the_last_tokens_of_its_rows() -> None:
    processors = load_processors(PLACES, VOCAB)
    run(
        [asks(("recorder", (1.0, 1))) if row != 2 else asks() for row in range(5)],
        partition=True,
        processors=processors,
    )
    recorder = processors["recorder"]
    assert isinstance(recorder, Recorder)
    assert recorder.seen.previous.tolist() == [[-1, -1, -1], [-1, -1, 10], [30, 31, 32], [41, 42, 43]]
    assert recorder.seen.position.tolist() == [0, 1, 3, 4]
    assert recorder.seen.num_prompt_tokens.tolist() == [1, 1, 1, 1]
    assert recorder.seen.parameters["times"].dtype == torch.int32


def test_a_row_that_asked_must_be_chosen_for_with_a_selection() -> None:
    table = SamplingTable(2, VOCAB, (), processors=load_processors(PLACES, VOCAB))
    table.admit(1, asks(("doubler", ())), 0, 1)
    assert table.demands(np.array([0, 1]))
    table.admit(1, asks(), 0, 1)
    assert not table.demands(np.array([0, 1]))


# --- the border


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([("waterwark", ())], "did you mean 'watermark'"),
        ([("doubler", ()), ("doubler", ())], "named twice"),
        ([("doubler", (1.0,))], "takes 0 numbers, not 1"),
        ([("recorder", (11.0, 1))], "`amount` of `recorder` is 11.0; it must be >= -10.0 and <= 10.0"),
        ([("recorder", (float("nan"), 1))], "`amount` of `recorder` is nan"),
        ([("recorder", (1.0, 1.5))], "`times` of `recorder` is 1.5, which is no integer"),
        ([("recorder", (1.0, float("inf")))], "`times` of `recorder` is inf"),
        ([("recorder", (1.0, 4.0))], "`times` of `recorder` is 4.0; it must be >= 1 and <= 3"),
    ],
)
def test_what_the_border_refuses(asked: list[tuple[str, tuple[float, ...]]], message: str) -> None:
    forms = ProcessorForms()
    forms.offered = forms_of(load_processors(PLACES, VOCAB))
    with pytest.raises(RequestError, match=re.escape(message)):
        forms.check([LogitsProcessing(*each) for each in asked])


def test_an_engine_without_processors_refuses_all() -> None:
    with pytest.raises(RequestError, match="Known: none"):
        ProcessorForms().check([LogitsProcessing("watermark", (0.5, 2.0, 1))])


class Greedy(LogitsProcessor):
    """Wants more history than there is."""

    history: ClassVar[int] = 65

    def process(self, logits_PV: Tensor, rows: ProcessedRows) -> Tensor:
        return logits_PV


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere.at_all:Thing", "does not import: ModuleNotFoundError"),
        ("mainspring.core.request:Submit", "is no subclass of LogitsProcessor"),
        (here(Greedy), "declares history 65; 0 to 64 are kept"),
    ],
)
def test_a_broken_plugin_is_named_at_the_start(place: str, message: str) -> None:
    with pytest.raises(StartupError, match=message):
        load_processors({"broken": place}, VOCAB)


# --- the watermark


def marked(previous: list[int], gamma: float, key: int, vocab_size: int = 500) -> Tensor:
    count = len(previous)
    rows = ProcessedRows(
        parameters={
            "gamma": torch.full((count,), gamma),
            "delta": torch.ones(count),
            "key": torch.full((count,), key, dtype=torch.int32),
        },
        previous=torch.tensor(previous, dtype=torch.int32)[:, None],
        position=torch.ones(count, dtype=torch.int32),
        num_prompt_tokens=torch.ones(count, dtype=torch.int32),
    )
    return Watermark(vocab_size).process(torch.zeros(count, vocab_size), rows)


@pytest.mark.parametrize("gamma", [0.01, 0.25, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("key", [0, DEFAULT_KEY, 2**31 - 1])
def test_device_and_detector_agree_on_every_list(gamma: float, key: int) -> None:
    previous = [0, 1, 77, 49_151, 2**31 - 1]
    expected = [[float(detector.is_green(p, t, gamma=gamma, key=key)) for t in range(500)] for p in previous]
    assert marked(previous, gamma, key).tolist() == expected


def test_lists_are_a_share_gamma_of_the_vocabulary_and_differ() -> None:
    green = marked(list(range(200)), 0.25, DEFAULT_KEY)
    assert abs(float(green.mean()) - 0.25) < 0.01
    together = float((green[:-1] * green[1:]).mean())
    assert abs(together - 0.25**2) < 0.01


def test_the_two_sides_have_the_same_constants() -> None:
    defaults = {parameter.name: parameter.default for parameter in Watermark.parameters}
    assert (defaults["gamma"], defaults["key"]) == (detector.DEFAULT_GAMMA, detector.DEFAULT_KEY)
    assert detector.SALT == SALT
    assert int(key_state(torch.tensor([123], dtype=torch.int32), SALT)[0]) == seed_key(SALT << 32 | 123)


def test_plain_tokens_have_standard_normal_scores() -> None:
    source = random.Random(5)
    found = [detector.detect([source.randrange(50_000) for _ in range(200)]).z for _ in range(200)]
    assert abs(float(np.mean(found))) < 0.25
    assert 0.85 < float(np.std(found)) < 1.15
    assert max(found) < detector.DEFAULT_THRESHOLD


def test_green_tokens_are_found_with_the_right_key_only() -> None:
    source, tokens = random.Random(6), [1]
    while len(tokens) < 100:
        token = source.randrange(50_000)
        if detector.is_green(tokens[-1], token):
            tokens.append(token)
    found = detector.detect(tokens)
    assert (found.num_green, found.num_scored, found.detected()) == (99, 99, True)
    assert found.p < 1e-9
    assert not detector.detect(tokens, key=DEFAULT_KEY + 1).detected()


def test_repetition_proves_nothing() -> None:
    pairs = combinations(range(9), 2)
    pair = next([a, b] for a, b in pairs if detector.is_green(a, b) and detector.is_green(b, a))
    assert detector.detect(pair * 100).num_scored == 2
    assert not detector.detect(pair * 100).detected()
    assert detector.detect([]) == detector.Detection(0, 0, 0.0, 0.5)


def test_a_gamma_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma is 1\.5"):
        detector.detect([1, 2, 3], gamma=1.5)
