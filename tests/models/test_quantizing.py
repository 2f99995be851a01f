"""Making quantized checkpoints: what is written reads back, GPTQ and AWQ beat rounding, and what cannot be is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from mainspring.core.errors import ModelError
from mainspring.core.quantizing.run import Order, quantize
from tests.models.conftest import load
from tests.quantized import source
from tests.support.model_driver import ModelDriver, Track


def logits(path: Path) -> Tensor:
    model, config = load(path, 64)
    return ModelDriver(model, config).step([(Track(list(source.TOKENS)), len(source.TOKENS))])[0]


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Order:
    directory = tmp_path_factory.mktemp("quantizing")
    source.write(directory / "model")
    return Order(
        model=directory / "model",
        out=directory / "out",
        method="rtn",
        group_size=32,
        sequences=source.calibration(directory / "model"),
    )


def made(order: Order, name: str) -> Tensor:
    order = replace(order, out=order.model.parent / name)
    quantize(order, lambda done, total: None)
    return logits(order.out)


def test_what_looks_at_the_text_beats_rounding(order: Order) -> None:
    plain = logits(order.model)
    nearest = made(order, "rtn")
    error = (nearest - plain).norm()
    assert error < 0.3 * plain.norm()
    assert (made(replace(order, method="gptq"), "gptq") - plain).norm() < 0.9 * error
    assert (made(replace(order, method="awq", symmetric=False), "awq") - plain).norm() < error


def test_layouts_hold_the_same_weights(order: Order) -> None:
    one = made(replace(order, method="gptq"), "one")
    other = made(replace(order, method="gptq", layout="gptq"), "other")
    assert (one - other).abs().max() < 1e-3 * one.abs().max()


def test_eight_bits_are_close(order: Order) -> None:
    plain = logits(order.model)
    assert (made(replace(order, bits=8), "eight") - plain).norm() < 0.02 * plain.norm()
    assert (made(replace(order, method="fp8"), "fp8") - plain).norm() < 0.08 * plain.norm()


def test_what_cannot_be_made_is_said(order: Order, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="do not divide into groups of 48; use --group-size 64"):
        quantize(replace(order, group_size=48, out=tmp_path / "new"), lambda done, total: None)
    with pytest.raises(ModelError, match="give --calibration"):
        quantize(replace(order, method="gptq", sequences=[], out=tmp_path / "new"), lambda done, total: None)
    with pytest.raises(ModelError, match="exists; give a directory that does not"):
        quantize(replace(order, out=tmp_path), lambda done, total: None)
