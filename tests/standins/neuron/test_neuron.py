"""The Neuron backend on its stand-in: `STANDIN=neuron`, or `neuron-xla` for the legacy way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.standins.aws import NeuronStandIn, runtime
from tests.standins.served import Served
from tests.support import tiny_drafts

LEGACY = os.environ["STANDIN"] == "neuron-xla"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        made = Served(NeuronStandIn(), tmp_path_factory.mktemp("tiny"), patch)
        yield made
        made.served.executor.close()


def test_generations_are_those_of_transformers(served: Served) -> None:
    served.generates_what_transformers_does()


def test_nothing_is_compiled_after_warm_up(served: Served) -> None:
    served.compiles_nothing_after_warm_up()


def test_heads_guess_in_compiled_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_drafts.medusa(tmp_path / "heads")
    served = Served(NeuronStandIn(), tmp_path / "model", monkeypatch, speculator=str(tmp_path / "heads"), speculate=3)
    served.guesses_in_compiled_programs()
    served.served.executor.close()


def test_without_nki_prefills_are_composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = runtime().device.calls["scaled_dot_product_attention"]
    served = Served(NeuronStandIn(), tmp_path, monkeypatch, backend_options={"kernels": "off"})
    served.generates_what_transformers_does()
    assert runtime().device.calls["scaled_dot_product_attention"] == before


def test_an_op_that_the_compiler_has_not_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="stand-in for neuron: aten::cholesky"):
        torch.eye(3).to("neuron").cholesky()
