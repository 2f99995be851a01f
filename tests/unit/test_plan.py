"""The start-up plan: memory adds up, and everything that cannot work is said at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import msgspec
import pluggy
import pytest

from mainspring.core import commands
from mainspring.core.backend import Backend, Capabilities, Device, DeviceInfo, Unavailable, WeightScheme
from mainspring.core.config import EngineConfig, ModelConfig, RopeConfig, StoredWeights
from mainspring.core.errors import StartupError
from mainspring.core.gguf_layouts import rounding_scheme
from mainspring.core.plan import blocks_that_fit, make_plan
from mainspring.core.plugins import Plugins

GIB = 1 << 30
MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=49152,
    hidden_size=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    intermediate_size=1536,
    max_position=8192,
    norm_epsilon=1e-5,
    rope=RopeConfig(theta=100000.0, rotary_dim=64),
    tied_embeddings=True,
    dtype="bfloat16",
)
FULL = Capabilities(
    compute_dtypes=("float32", "bfloat16"),
    kv_dtypes=("float32", "bfloat16"),
    block_sizes=(16, 32),
    attention=frozenset({"sliding_window", "softcap"}),
    weight_schemes=(WeightScheme(weight="int8", bits=8),),
)


class Declares(Backend):
    """A backend that declares what it is given and cannot be opened."""

    name = "declares"
    contract_version = 1

    def __init__(self, capabilities: Capabilities) -> None:
        self._capabilities = capabilities

    def devices(self) -> list[DeviceInfo] | Unavailable:
        return []

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        return self._capabilities

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        raise AssertionError("a plan opens nothing")


def device(total: int = 24 * GIB) -> DeviceInfo:
    return DeviceInfo(0, "Test", "none", total)


def test_weights_workspace_and_cache_stay_within_the_share() -> None:
    config = EngineConfig(model="m", memory_fraction=0.5)
    plan = make_plan(config, MODEL, Declares(FULL), device())
    assert plan.usable_bytes == 12 * GIB
    assert plan.weight_bytes == pytest.approx(134_515_008 * 4, rel=1e-6)
    assert plan.weight_bytes + plan.workspace_bytes + plan.kv_bytes <= plan.usable_bytes
    one_more = plan.kv_bytes + plan.kv.block_bytes()
    assert plan.weight_bytes + plan.workspace_bytes + one_more > plan.usable_bytes


def test_weights_that_stay_quantized_take_what_the_file_has() -> None:
    model = msgspec.structs.replace(MODEL, stored=(StoredWeights("q4_1", 1 << 20, 655_360),))
    keeping = dataclasses.replace(FULL, weight_schemes=(rounding_scheme("q4_1"),))
    config = EngineConfig(model="m")
    numbers = make_plan(config, model, Declares(FULL), device()).weight_bytes
    assert numbers - make_plan(config, model, Declares(keeping), device()).weight_bytes == (4 << 20) - 655_360
    none = EngineConfig(model="m", quantize="none")
    assert make_plan(none, model, Declares(keeping), device()).weight_bytes == numbers


def test_no_more_blocks_than_all_sequences_could_fill() -> None:
    plan = make_plan(EngineConfig(model="m", max_sequences=2, max_length=64), MODEL, Declares(FULL), device())
    assert plan.num_blocks == 1 + 2 * 4
    assert plan.max_concurrent_tokens == 128


def test_every_reason_is_said_at_once() -> None:
    poor = dataclasses.replace(FULL, compute_dtypes=("float16",), head_dims=(128,), attention=frozenset())
    model = ModelConfig(
        **{field: getattr(MODEL, field) for field in MODEL.__struct_fields__} | {"windows": (4096,) * 30}
    )
    config = EngineConfig(model="m", dtype="bfloat16", block_size=64, max_length=100_000, quantize="int4")
    with pytest.raises(StartupError) as raised:
        make_plan(config, model, Declares(poor), device())
    text = str(raised.value)
    for part in ("compute dtype", "block size", "head dimension", "sliding_window", "context", "weights"):
        assert part in text, part
    assert len(raised.value.reasons) >= 6


def test_a_device_too_small_for_the_weights_says_both_numbers() -> None:
    with pytest.raises(StartupError, match=r"memory: needs [\d,]+ bytes, has 225,485,782 bytes"):
        make_plan(EngineConfig(model="m", memory_fraction=0.7), MODEL, Declares(FULL), device(3 * GIB // 10))


def test_a_shorter_context_than_the_models_is_noted_not_hidden() -> None:
    config = EngineConfig(model="m", memory_fraction=0.5, max_batch_tokens=256, max_sequences=8)
    plan = make_plan(config, MODEL, Declares(FULL), device(int(1.5 * GIB)))
    assert plan.max_length < 8192
    assert any(str(plan.max_length) in note for note in plan.notes)


def test_the_checkpoints_16_bit_dtype_is_kept_where_16_bits_are_preferred() -> None:
    short = dataclasses.replace(FULL, compute_dtypes=("float16", "bfloat16", "float32"), kv_dtypes=())
    assert make_plan(EngineConfig(model="m"), MODEL, Declares(short), device()).dtype == "bfloat16"
    assert make_plan(EngineConfig(model="m"), MODEL, Declares(FULL), device()).dtype == "float32"


def test_after_loading_what_is_free_decides() -> None:
    config = EngineConfig(model="m", memory_fraction=0.5)
    plan = make_plan(config, MODEL, Declares(FULL), device())
    share = (12 * GIB - plan.weight_bytes - plan.workspace_bytes) // plan.kv.block_bytes()
    assert blocks_that_fit(plan, config, 23 * GIB, 24 * GIB) == share
    assert blocks_that_fit(plan, config, 13 * GIB, 24 * GIB) == share, "what others use does not count as ours"
    left = (2 * GIB - int(0.02 * 24 * GIB) - plan.workspace_bytes) // plan.kv.block_bytes()
    assert blocks_that_fit(plan, config, 2 * GIB, 24 * GIB) == left
    assert blocks_that_fit(plan, EngineConfig(model="m", num_blocks=7), 2 * GIB, 24 * GIB) == 7


def test_an_unknown_quantization_is_refused_with_the_nearest_beside_the_other_reasons() -> None:
    with pytest.raises(StartupError, match="unknown quantization 'int-8'; did you mean 'int8'") as raised:
        make_plan(EngineConfig(model="m", quantize="int-8", block_size=48), MODEL, Declares(FULL), device())
    assert any("block size" in reason for reason in raised.value.reasons)


def test_check_says_what_is_wrong_with_the_model_and_with_the_backend_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = EngineConfig(model=str(tmp_path), backend="cppu")
    assert commands.main(["check", msgspec.json.encode(config).decode()]) == 71
    said = capsys.readouterr().out
    assert "config.json" in said
    assert "did you mean 'cpu'" in said


class Absent(Declares):
    """A backend whose device needs an extra."""

    def devices(self) -> Unavailable:
        return Unavailable("no such device", "pip install 'mainspring[absent]'")


def test_what_to_install_is_shown_with_its_brackets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugins = Plugins(pluggy.PluginManager("mainspring"), {"absent": Absent(FULL)}, problems=("no [extra] here",))
    monkeypatch.setattr(commands, "load_plugins", lambda: plugins)
    assert commands.main(["backends"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "'mainspring[absent]'" in said
    assert "no [extra] here" in said
