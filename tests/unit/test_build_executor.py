"""From a plan to an executor: the model is loaded, the cache sized by what is left, and a request served."""

from __future__ import annotations

import pytest

from mainspring.core.backend import DeviceInfo, KVSpec
from mainspring.core.batch import Bucket, Buckets
from mainspring.core.config import EngineConfig, ModelConfig, RopeConfig
from mainspring.core.errors import StartupError
from mainspring.core.execution.loading import build_executor
from mainspring.core.execution.runner import GraphExecutor
from mainspring.core.ops.attention import PagedKV
from mainspring.core.plan import draft
from tests.support.by_hand import Running, run
from tests.support.plain_device import DYNAMIC, PlainDevice

MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=89,
    hidden_size=48,
    num_layers=2,
    num_heads=3,
    num_kv_heads=1,
    head_dim=16,
    intermediate_size=64,
    max_position=64,
    norm_epsilon=1e-5,
    rope=RopeConfig(rotary_dim=16),
)
INFO = DeviceInfo(0, "Plain", "none", 1 << 30)


def engine(**changes: object) -> EngineConfig:
    return EngineConfig(model="m", load_format="dummy", max_sequences=4, max_batch_tokens=32, block_size=16, **changes)


def build(device: PlainDevice, config: EngineConfig, seen: list[str] | None = None) -> GraphExecutor:
    return build_executor(
        config,
        MODEL,
        draft(config, MODEL, DYNAMIC, INFO),
        device,
        info=INFO,
        capabilities=DYNAMIC,
        progress=lambda phase, done, total: None if seen is None else seen.append(phase),
    )


def test_a_built_executor_serves() -> None:
    device, phases = PlainDevice(), []
    executor = build(device, engine(), phases)
    assert executor.device_name() == "Plain"
    assert executor.kv_spec() == KVSpec(layers=2, heads=1, head_dim=16, dtype="float32", block_size=16)
    # All that four sequences of 64 tokens could use, and block 0.
    assert executor.num_blocks() == 17
    assert executor.buckets() is None
    assert "warm-up" in phases
    long, short = Running(0, list(range(30)), [1, 2, 3]), Running(2, [5], [4, 5])
    together = run(executor, [long, short], 8, chunk=7, ahead=1)
    executor.close()
    assert device.closed == 1
    assert together == [run_alone(long), run_alone(short)]


def run_alone(sequence: Running) -> list[int]:
    executor = build(PlainDevice(), engine())
    tokens = run(executor, [Running(1, sequence.prompt, [7, 9, 3])], 8)
    executor.close()
    return tokens[0]


def test_the_operator_s_number_of_blocks_holds() -> None:
    executor = build(PlainDevice(), engine(num_blocks=3))
    assert executor.num_blocks() == 3
    executor.close()


class Full(PlainDevice):
    """Weights left almost nothing."""

    def memory(self) -> tuple[int, int]:
        return 1 << 20, 1 << 30


def test_memory_too_small_for_the_cache_is_a_sentence() -> None:
    with pytest.raises(StartupError, match=r"no memory is left for the KV cache: 1,048,576 of .* raise --memory-frac"):
        build(Full(), engine())


class Liar(PlainDevice):
    """Says that it has memory, and has not."""

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> PagedKV:
        raise RuntimeError("out of memory")


def test_a_cache_that_does_not_fit_after_all_is_a_sentence() -> None:
    with pytest.raises(StartupError, match=r"the KV cache of 17 blocks \(69,632 bytes\) did not fit"):
        build(Liar(), engine())


def test_quantization_that_the_device_lacks_names_every_layer() -> None:
    with pytest.raises(StartupError) as refusal:
        build(PlainDevice(), engine(quantize="int8"))
    assert len(refusal.value.reasons) == 4
    assert refusal.value.reasons[0].startswith("--quantize int8: query, key and value projection (48 to 80 features)")


def test_unusable_buckets_are_refused() -> None:
    buckets = Buckets(decode=(Bucket(8, 8, 4), Bucket(4, 4, 4)), prefill=())
    with pytest.raises(StartupError, match="Plain: the last decode bucket"):
        build(PlainDevice(buckets), engine())
