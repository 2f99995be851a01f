"""{rank, the engine with ranks} x {SIGKILL, SIGSEGV, SIGSTOP} x {loading, idle, prefill, decode, draining}: a model on
two ranks of the host, real processes.

Ranks cannot go on without each other, and one that waits for a dead one waits in the device, where nothing reaches it.
All requests are answered with an error all the same, within the second; a rank that stands still is given the engine's
grace first. The exit code is the engine's: 70, or 71 while it loads; and nobody is left.
"""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.reliability.cells import ANSWER_SECONDS, HUNG_SECONDS, Cell, Kind, run, strike
from tests.support.model_directory import TINY, write_tiny_model
from tests.support.promises import Measured
from tests.support.tiny_tokenizers import write_word_tokenizer

LENGTH = 16384
"""Tokens of a sequence: more than any test waits for."""


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_tiny_model(tmp_path_factory.mktemp("long") / "tiny", LENGTH)
    write_word_tokenizer(directory, TINY.vocab_size)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "eos_token_id": None}))  # nothing ends by itself
    return directory


def flags_for(phase: str) -> list[str]:
    """Weights of a generator, a little cache. A prompt is prefilled 16 tokens a step, so that the phase lasts."""
    flags = ["--backend", "cpu", "--num-shard", "2", "--load-format", "dummy", "--max-batch-size", "8"]
    return [*flags, "--max-batch-prefill-tokens", "16" if phase == "prefill" else "256", "--threads", "1"]


def staged(phase: str) -> list[str]:
    """The same with a stage a rank."""
    return ["--pipeline-parallel-size" if flag == "--num-shard" else flag for flag in flags_for(phase)]


RANKS = Kind(flags_for, max_tokens=12_000, ranks=2, rounds=(["loading"], ["idle", "prefill", "decode", "draining"]))


@pytest.mark.promise("F1", "F5", "P1", "P3", "P4")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_f1_f5_p1_p3_p4_a_killed_rank(
    number: signal.Signals, long_model: Path, tmp_path: Path, measured: Measured
) -> None:
    async def test(cell: Cell) -> float:
        strike(cell, "rank", number)
        replies = await cell.answers(within=ANSWER_SECONDS)
        slowest = time.monotonic() - cell.struck
        assert all(reply.error for reply in replies), (cell.phase, replies)
        assert await cell.ended() == (71 if cell.phase == "loading" else 70), cell.phase
        await cell.gone()
        assert f"rank 1 was ended by {number.name}" in cell.server.log.read_text(), cell.phase
        return slowest

    slowest = max(run(long_model, tmp_path, test, RANKS))
    measured(f"{number.name} of a rank: every request of every phase answered after {slowest:.2f} s at most")


def test_a_killed_stage_ends_the_server(long_model: Path, tmp_path: Path) -> None:
    async def test(cell: Cell) -> float:
        strike(cell, "rank", signal.SIGKILL)
        replies = await cell.answers(within=ANSWER_SECONDS)
        assert all(reply.error for reply in replies), (cell.phase, replies)
        assert await cell.ended() == (71 if cell.phase == "loading" else 70), cell.phase
        await cell.gone()
        return 0.0

    run(long_model, tmp_path, test, replace(RANKS, flags=staged, rounds=(["loading"], ["prefill", "decode"])))


@pytest.mark.promise("F3", "F5", "F22", "P2", "P3", "P4")
def test_f3_f5_p2_p3_p4_a_stopped_rank(long_model: Path, tmp_path: Path, measured: Measured) -> None:
    async def test(cell: Cell) -> float:
        strike(cell, "rank", signal.SIGSTOP)
        replies = await cell.answers(within=HUNG_SECONDS)
        assert all(reply.error for reply in replies), (cell.phase, replies)
        assert await cell.ended() == (71 if cell.phase == "loading" else 70), cell.phase
        seen = time.monotonic() - cell.struck
        await cell.gone()
        assert "rank 1 was stopped" in cell.server.log.read_text(), cell.phase
        return seen

    slowest = max(run(long_model, tmp_path, test, RANKS))
    measured(f"SIGSTOP of a rank: seen, answered and over after {slowest:.1f} s; {HUNG_SECONDS:.1f} s for the answers")


@pytest.mark.promise("F1", "F4", "P3")
@pytest.mark.parametrize("victim", ["server", "engine"])
def test_f1_f4_p3_ranks_end_with_their_server_and_their_engine(victim: str, long_model: Path, tmp_path: Path) -> None:
    async def test(cell: Cell) -> float:
        strike(cell, victim, signal.SIGKILL)
        await cell.ended()
        await cell.gone()
        return 0.0

    run(long_model, tmp_path, test, replace(RANKS, rounds=(["loading"], ["decode"])))
