"""The Neuron backend where there is no chip: what it says of chips and software, placeholders among it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mainspring.backends.neuron.artifacts import folder
from mainspring.backends.neuron.chips import CHIPS, Chip, chips, cores
from mainspring.backends.neuron.device import NeuronBackend
from mainspring.backends.neuron.vendor import Installation, NeuronXla, TorchNeuron, Vendor, find
from mainspring.core.backend import Unavailable
from mainspring.core.config import EngineConfig
from mainspring.core.errors import BackendError
from tests.support.placeholders import SAYS

TRN1, TRN2 = CHIPS["0x7164"], CHIPS["0x7364"]
ALL = "torch torch_neuronx torch_xla"


def installation(packages: str, release: tuple[int, ...] = (2, 13), refusal: str | None = None) -> Installation:
    return Installation(
        has=lambda package: package in packages.split() or None,
        refuses=lambda package: refusal,
        release=lambda package: release,
    )


def backend(*found: Chip, here: Installation) -> NeuronBackend:
    return NeuronBackend(lambda: list(found), lambda seen: find(seen, here))


def test_chips_are_what_the_bus_says_and_cores_share_their_memory(tmp_path: Path) -> None:
    for place, vendor, device in (("0", "0x1d0f", "0x7364"), ("1", "0x1d0f", "0x7064"), ("2", "0x10de", "0x7364")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "vendor").write_text(f"{vendor}\n")
        (tmp_path / place / "device").write_text(f"{device}\n")
    found = chips(tmp_path)
    assert found == [TRN2]
    assert [core.hbm_bytes for core in cores(found)] == [24 << 30] * 4


@pytest.mark.parametrize(
    ("chip", "here", "vendor"),
    [
        (TRN2, installation(ALL), TorchNeuron),
        (TRN2, installation("torch torch_neuronx"), TorchNeuron),
        (TRN2, installation(ALL, (2, 9)), NeuronXla),
        (TRN1, installation(ALL), NeuronXla),
    ],
    ids=["native first", "native alone", "before native", "a chip that has no other"],
)
def test_ways_are_probed_in_order(chip: Chip, here: Installation, vendor: type[Vendor]) -> None:
    assert find([chip], here) is vendor


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (backend(TRN2, here=installation("")), "torch is not installed"),
        (backend(TRN2, here=installation("torch")), "torch_neuronx is not installed, though there is a trn2"),
        (backend(here=installation("torch")), "not installed, and the machine shows no Trainium or Inferentia 2"),
        (backend(here=installation(ALL)), "torch_neuronx is installed, but the machine shows no Trainium"),
        (
            backend(TRN2, here=installation(ALL, (1, 0), SAYS)),
            f"does not import, as PyPI's placeholder does not ({SAYS})",
        ),
        (backend(here=installation(ALL, (1, 0), SAYS)), f"does not import, as PyPI's placeholder does not ({SAYS})"),
        (backend(TRN1, here=installation("torch torch_neuronx")), "torch_xla is not installed"),
    ],
    ids=["no torch", "no software", "nothing", "no chip", "placeholder", "placeholder and no chip", "no torch_xla"],
)
def test_what_is_missing_is_said_with_the_remedy(given: NeuronBackend, reason: str) -> None:
    found = given.devices()
    assert isinstance(found, Unavailable)
    assert reason in found.reason
    assert "AWS's own index" in found.remedy
    with pytest.raises(BackendError, match="AWS's own index"):
        given.open(0, 0, 1, EngineConfig(model="none"))


def test_compiled_programs_lie_by_model_buckets_and_compiler(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    model, root = str(tmp_path), Path("cache")
    one = folder(root, model, {"blocks": (8,)}, "neuronx-cc-2.21")
    assert one == folder(root, model, {"blocks": (8,)}, "neuronx-cc-2.21")
    others = {folder(root, model, {"blocks": (16,)}, "neuronx-cc-2.21"), folder(root, model, {"blocks": (8,)}, "2.22")}
    (tmp_path / "config.json").write_text('{"vocab_size": 2}')
    others.add(folder(root, model, {"blocks": (8,)}, "neuronx-cc-2.21"))
    assert len(others | {one}) == 4


def test_the_folder_is_given_to_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Opened(Exception):
        pass

    class Nothing(TorchNeuron):
        def __init__(self) -> None:
            raise Opened

    monkeypatch.setattr(os, "environ", {})
    config = EngineConfig(model="m", backend_options={"program_cache": str(tmp_path)})
    with pytest.raises(Opened):
        NeuronBackend(lambda: [TRN2], lambda found: Nothing).open(0, 0, 1, config)
    assert os.environ["TORCH_NEURONX_NEFF_CACHE_DIR"].startswith(str(tmp_path / "m-"))
    assert os.environ["NEURON_COMPILE_CACHE_URL"] == os.environ["TORCH_NEURONX_NEFF_CACHE_DIR"]
