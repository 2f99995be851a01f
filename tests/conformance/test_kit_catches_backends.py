"""Whole backends that are wrong in one thing, through the kit as anyone runs it: each is caught by name."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from mainspring.backends.sim import SimBackend
from mainspring.core.backend import Backend
from mainspring.core.conformance.checks import check_backend
from mainspring.core.conformance.find import find_backend
from mainspring.core.errors import BackendError
from tests.conformance import broken_backends as broken

STEPS = ("model", "programs", "captured equals eager")
OFFSETS = ("attention past 2^31", "kv_write past 2^31", "copy_blocks past 2^31")


def failed(backend: Backend, only: Sequence[str]) -> set[str]:
    declared = backend.capabilities(backend.devices()[0])  # type: ignore[index]
    known = [subject for subject in only if subject != "captured equals eager" or declared.graphs == "capture"]
    report = check_backend(backend, only=known)
    assert len(report.findings) >= len(known)
    return set(report.failed())


def test_the_sound_backend_conforms() -> None:
    report = check_backend(broken.Sound())
    assert report.ok, [problem for finding in report.findings for problem in finding.problems]
    assert {"model", "programs", "collectives"} <= {finding.subject for finding in report.findings if finding.cases}


def test_the_sound_backend_that_captures_conforms() -> None:
    assert failed(broken.Capturing(), STEPS) == set()


def test_a_sound_cache_of_any_size_conforms() -> None:
    report = check_backend(broken.Vast(), only=OFFSETS)
    assert report.ok, [problem for finding in report.findings for problem in finding.problems]
    assert [finding.cases for finding in report.findings] == [1, 1, 1]


@pytest.mark.parametrize(
    ("backend", "caught"),
    [
        (broken.StaleKey(), {"captured equals eager", "model", "model, freed blocks"}),
        (broken.BakedIntegers(), {"captured equals eager", "model", "model, freed blocks"}),
        (broken.NeverCaptures(), {"programs"}),
        (broken.CompilesAgain(), {"programs"}),
        (broken.OtherShape(), {"programs", "model", "model, freed blocks"}),
        (broken.ReadsFreedBlocks(), {"model, freed blocks"}),
        (broken.ForgetsPrefixes(), {"model", "model, freed blocks"}),
    ],
    ids=lambda value: value.__class__.__name__ if isinstance(value, Backend) else "",
)
def test_wrong_steps_are_caught(backend: Backend, caught: set[str]) -> None:
    assert failed(backend, STEPS) == caught


@pytest.mark.parametrize(
    ("backend", "caught"),
    [
        (broken.ShortReads(), {"attention past 2^31", "kv_write past 2^31", "copy_blocks past 2^31"}),
        (broken.ShortWrites(), {"kv_write past 2^31"}),
        (broken.ShortCopies(), {"copy_blocks past 2^31"}),
    ],
    ids=lambda value: value.__class__.__name__ if isinstance(value, Backend) else "",
)
def test_offsets_of_32_bits_are_caught(backend: Backend, caught: set[str]) -> None:
    assert failed(backend, OFFSETS) == caught


@pytest.mark.parametrize(
    ("backend", "caught"),
    [
        (broken.NegativeMemory(), {"memory and events"}),
        (broken.UnknownOp(), {"capabilities"}),
        (broken.NoBucketHoldsAll(), {"buckets"}),
        (broken.BucketedWithoutBuckets(), {"buckets"}),
    ],
    ids=lambda value: value.__class__.__name__ if isinstance(value, Backend) else "",
)
def test_wrong_words_are_caught(backend: Backend, caught: set[str]) -> None:
    assert failed(backend, ("capabilities", "memory and events", "buckets")) == caught


def test_an_executor_whose_rows_disturb_each_other_is_caught() -> None:
    assert check_backend(SimBackend()).ok
    assert check_backend(broken.Crosstalk()).failed() == ["executor"]


def test_wrong_collectives_are_caught_each_by_its_name() -> None:
    report = check_backend(broken.ConfusedRanks(), only=["collectives"])
    assert report.failed() == ["collectives"]
    wrong = {problem.partition(",")[0] for problem in report.findings[0].problems}
    # A norm over ranks is made of a sum where a device has none of its own.
    assert wrong == {"all_reduce", "all_gather", "reduce_scatter", "summed_norm"}


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tests.conformance.broken_backends:Missing", "has no attribute 'Missing'"),
        ("tests.conformance.nowhere:Sound", "No module named 'tests.conformance.nowhere'"),
        ("tests.conformance.broken_backends:VastDevice", "is a VastDevice and no Backend"),
        ("soundd", "soundd"),
    ],
)
def test_an_address_that_leads_to_no_backend_says_why(address: str, reason: str) -> None:
    with pytest.raises(BackendError, match=reason):
        find_backend(address)


def test_a_check_that_does_not_exist_is_refused_with_the_nearest() -> None:
    with pytest.raises(BackendError, match="did you mean 'kv_write'"):
        check_backend(broken.Sound(), only=["kv_writes"])
