"""A tiny model and real servers of it on the sim backend. All tests here run alone: they are about times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.live_server import LiveServer, live_server
from tests.support.model_directory import TINY, write_tiny_model
from tests.support.tiny_tokenizers import write_word_tokenizer

SIM = ("--backend", "sim", "--backend-option", "vocabulary=300-1000")
"""Tokens that are words of their own, never the end of the sequence."""

Serve = Callable[..., AbstractContextManager[LiveServer]]
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what lies here."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("alone")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory without weights, whose tokens are words."""
    directory = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    write_word_tokenizer(directory, TINY.vocab_size)
    return directory


@pytest.fixture(scope="session")
def fast_server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One for all tests that leave it as they found it; its steps take no time."""
    log = tmp_path_factory.mktemp("fast") / "log"
    with live_server(str(model), log, *SIM, "--backend-option", "speed=0") as server:
        yield server
