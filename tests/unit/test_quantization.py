"""Schemes by name, and every reason why a device cannot run a model under one."""

from __future__ import annotations

import msgspec
import pytest

from mainspring.core.architectures import linear_shapes
from mainspring.core.backend import Verdict, WeightScheme
from mainspring.core.config import ExpertsConfig, ModelConfig
from mainspring.core.ops.quantized import can_quantize
from mainspring.core.quantization import SCHEMES, unsupported
from tests.support.reference_device import ReferenceDevice

MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=89,
    hidden_size=48,
    num_layers=2,
    num_heads=3,
    num_kv_heads=1,
    head_dim=32,
    intermediate_size=112,
    max_position=64,
    norm_epsilon=1e-5,
)


class Picky(ReferenceDevice):
    """Has a kernel for layers of at most 100 output features."""

    def supports(self, scheme: WeightScheme, in_features: int, out_features: int) -> Verdict:
        return Verdict(out_features <= 100, f"{out_features} outputs are too many")


def test_names_give_schemes() -> None:
    assert SCHEMES["int8"] == WeightScheme(weight="int8", bits=8)
    assert SCHEMES["int4"].group_size == 32


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_can_be_made_by_rounding(name: str) -> None:
    assert can_quantize(SCHEMES[name])


def test_shapes_are_those_of_the_merged_layers() -> None:
    assert list(linear_shapes(MODEL).values()) == [(48, 160), (96, 48), (48, 224), (112, 48)]


def test_every_layer_that_does_not_fit_is_named() -> None:
    assert unsupported(MODEL, SCHEMES["int8"], Picky()) == [
        "query, key and value projection (48 to 160 features): 160 outputs are too many",
        "MLP input projection (48 to 224 features): 224 outputs are too many",
    ]
    reasons = unsupported(MODEL, SCHEMES["int4"], Picky())
    assert [reason.partition(":")[2] for reason in reasons] == [
        " 48 does not divide into groups of 32",
        " 48 does not divide into groups of 32",
        " 112 does not divide into groups of 32",
    ]


def test_a_device_without_kernels_refuses_all() -> None:
    assert len(unsupported(MODEL, SCHEMES["int8"], ReferenceDevice())) == 4


def test_experts_are_not_quantized() -> None:
    experts = ExpertsConfig(count=4, chosen=2, size=56, normalized=True)
    (reason,) = unsupported(msgspec.structs.replace(MODEL, experts=experts), SCHEMES["int8"], ReferenceDevice())
    assert reason.startswith("experts are kept in the compute dtype")
