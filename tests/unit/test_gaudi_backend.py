"""The Gaudi backend where there is no Gaudi: what it says of cards and software, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from mainspring.backends.gaudi.cards import GAUDI, GAUDI2, GAUDI3, Card, cards
from mainspring.backends.gaudi.device import FP8_SCHEME, GaudiBackend
from mainspring.backends.gaudi.vendor import check
from mainspring.core.backend import DeviceInfo, Unavailable
from mainspring.core.config import EngineConfig
from mainspring.core.errors import BackendError


def backend(*found: Card, packages: str = "torch habana_frameworks") -> GaudiBackend:
    return GaudiBackend(lambda: list(found), lambda seen: check(seen, lambda name: name in packages.split() or None))


def test_cards_are_what_the_bus_says(tmp_path: Path) -> None:
    for place, vendor, device in (("0", "0x1da3", "0x1020"), ("1", "0x10de", "0x1020"), ("2", "0x1da3", "0xffff")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "vendor").write_text(f"{vendor}\n")
        (tmp_path / place / "device").write_text(f"{device}\n")
    assert cards(tmp_path) == [GAUDI2]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (backend(GAUDI3, packages=""), "torch is not installed"),
        (backend(GAUDI3, packages="torch"), "habana_frameworks is not installed, though the machine has a Gaudi"),
        (backend(packages="torch"), "habana_frameworks is not installed, and the machine shows no Gaudi"),
        (backend(), "habana_frameworks is installed, but the machine shows no Gaudi"),
    ],
    ids=["no torch", "no software", "nothing", "no card"],
)
def test_what_is_missing_is_said_with_the_remedy(given: GaudiBackend, reason: str) -> None:
    found = given.devices()
    assert isinstance(found, Unavailable)
    assert found.reason == reason
    assert "habana-torch-plugin" in found.remedy
    with pytest.raises(BackendError, match="habana-torch-plugin"):
        given.open(0, 0, 1, EngineConfig(model="none"))


def test_what_cards_declare() -> None:
    found = backend(GAUDI2, GAUDI2).devices()
    assert found == [DeviceInfo(i, "Intel gaudi2", "gaudi2", 96 << 30) for i in range(2)]
    declared = backend().capabilities(found[0])
    assert (declared.block_sizes, declared.shapes, declared.collectives) == ((128,), "bucketed", "hccl")
    assert declared.weight_schemes == (FP8_SCHEME,)
    assert backend().capabilities(DeviceInfo(0, "", GAUDI.arch, 1)).weight_schemes == ()
    assert declared.verified == "L2", "no Gaudi has run it"


def test_options_are_checked_before_the_runtime_starts() -> None:
    with pytest.raises(BackendError, match="did you mean 'hpu_graphs'"):
        backend(GAUDI2).open(0, 0, 1, EngineConfig(model="none", backend_options={"hpu_graph": "on"}))
