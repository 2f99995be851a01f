"""The Gaudi backend on its stand-in: `STANDIN=gaudi`, or `gaudi-lazy` for lazy graphs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mainspring.backends.gaudi.cards import GAUDI2
from mainspring.backends.gaudi.device import FP8_SCHEME, GaudiDevice
from mainspring.backends.gaudi.vendor import Habana
from mainspring.core.errors import BackendError
from mainspring.core.ops.quantized import quantize_weight
from tests.standins.habana import GaudiStandIn, bridge
from tests.standins.served import Served
from tests.support import tiny_drafts

# The host's own word about one of its ops.
pytestmark = pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
LAZY = os.environ["STANDIN"] == "gaudi-lazy"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        made = Served(GaudiStandIn(), tmp_path_factory.mktemp("tiny"), patch)
        yield made
        made.served.executor.close()


def test_generations_are_those_of_transformers(served: Served) -> None:
    served.generates_what_transformers_does()


def test_nothing_is_compiled_after_warm_up(served: Served) -> None:
    served.compiles_nothing_after_warm_up()


def test_heads_guess_in_compiled_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_drafts.mlp_speculator(tmp_path / "heads", tied=False, scale_input=True)
    served = Served(GaudiStandIn(), tmp_path / "model", monkeypatch, speculator=str(tmp_path / "heads"), speculate=3)
    served.guesses_in_compiled_programs()
    served.served.executor.close()


@pytest.mark.parametrize("options", [{"kernels": "off"}, {"hpu_graphs": "on"}], ids=["composed", "captured"])
def test_other_ways_to_run_give_the_same_tokens(
    options: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "hpu_graphs" in options and not LAZY:
        with pytest.raises(BackendError, match="PT_HPU_LAZY_MODE=1"):
            Served(GaudiStandIn(), tmp_path, monkeypatch, backend_options=options)
        return
    before = bridge().recorder.calls["FusedSDPA.apply"]
    served = Served(GaudiStandIn(), tmp_path, monkeypatch, backend_options=options)
    served.generates_what_transformers_does()
    composed = bridge().recorder.calls["FusedSDPA.apply"] == before
    assert composed == ("kernels" in options)


def test_gaudi_2_has_half_the_range_of_float8() -> None:
    device = GaudiDevice(Habana(), GAUDI2, {}, {})
    weight = torch.randn(48, 64)
    stored = quantize_weight(weight, FP8_SCHEME)
    packed = device.pack(FP8_SCHEME, {name: x.to("hpu") for name, x in stored.items()})
    assert packed.data[0].cpu().float().abs().max() <= 240
    x = torch.randn(5, 64)
    found = device.quantized_linear(x.to("hpu"), packed).cpu()
    assert (found - x @ weight.t()).norm() <= 0.06 * found.norm()


def test_an_op_that_the_vendor_has_not_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="stand-in for hpu: aten::erfinv"):
        torch.ones(3).to("hpu").erfinv()
