"""The whole executor on a GPU: captured graphs against eager, transformers' tokens, and a queue that never waits."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mainspring.backends.cuda.device import CudaDevice
from mainspring.core.backend import AttentionPlan, Program
from mainspring.core.batch import Bucket
from mainspring.core.config import EngineConfig
from mainspring.core.execution.inputs import StepTensors
from mainspring.core.request import SamplingParams
from tests.support.in_process import InProcess, open_in_process
from tests.support.tiny_models import CASES, GENERATED, build, reference_greedy, save, sequence

PROMPTS = [[(7 * i + j) % 89 for j in range(3 + i % 11)] for i in range(40)]
DRAWN = SamplingParams(max_tokens=9, temperature=0.8, top_k=20, top_p=0.9, seed=5, ignore_eos=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(build(CASES["llama"].config()), tmp_path_factory.mktemp("llama"))


def serve(path: Path, device: CudaDevice | None = None, **changes: object) -> InProcess:
    config = EngineConfig(
        model=str(path), backend="cuda", dtype="float32", max_length=60, max_sequences=40, max_batch_tokens=256,
        num_blocks=400, block_size=16, **changes,
    )  # fmt: skip
    return open_in_process(config, device)


class Comparing(CudaDevice):
    """Runs every bucket's program both ways; the first run of a program only captures it."""

    def __init__(self) -> None:
        super().__init__(0)
        self.errors: dict[Bucket, float] = {}

    def compile(self, program: Program, bucket: Bucket | None) -> Program:
        captured = super().compile(program, bucket)
        if bucket is None:
            return captured

        def both(inputs: StepTensors, plan: AttentionPlan) -> tuple[torch.Tensor, ...]:
            first: tuple[torch.Tensor, ...] = captured(inputs, plan)
            if not bool((inputs.metadata.slot >= 0).any()):
                return first  # warm-up: nobody's next token is what was chosen for nobody last
            eager = [part.clone() for part in program(inputs, plan)]
            replayed: tuple[torch.Tensor, ...] = captured(inputs, plan)
            # Beyond the last token of a step lie hidden states of padding, which nobody reads.
            real = int(inputs.metadata.query_start[-1])
            for part, expected in zip(replayed, eager, strict=True):
                length = real if len(part) == bucket.tokens else len(part)
                error = float((part[:length] - expected[:length]).abs().max())
                self.errors[bucket] = max(error, self.errors.get(bucket, 0.0))
            return replayed

        return both


def test_every_captured_graph_equals_eager(llama: Path) -> None:
    device = Comparing()
    served = serve(llama, device)
    for count in range(1, len(PROMPTS) + 1):
        served.generate(PROMPTS[:count], SamplingParams(max_tokens=4, ignore_eos=True))
    buckets = served.executor.buckets()
    assert buckets is not None
    assert set(buckets.decode) < set(device.errors) == {batch.bucket for batch in served.batches if batch.bucket}
    # Prompts of all these lengths, alone and beside decodes.
    assert len(set(device.errors) - set(buckets.decode)) > 8
    # Not a number is no difference that a comparison with a bound would let pass.
    assert all(error < 1e-5 for error in device.errors.values())
    served.executor.close()


def test_one_device_captures_for_executors_that_come_and_go(llama: Path) -> None:
    class Kept(CudaDevice):
        def close(self) -> None:
            """Stays open for the next executor."""

    device, outputs = Kept(0), []
    for _ in range(3):
        served = serve(llama, device)
        outputs.append(served.generate(PROMPTS[:3], SamplingParams(max_tokens=4, ignore_eos=True)))
        served.executor.close()
        del served
        gc.collect()
    assert outputs[0] == outputs[1] == outputs[2]


@pytest.mark.parametrize("params", [SamplingParams(max_tokens=9, ignore_eos=True), DRAWN], ids=["greedy", "drawn"])
def test_graphs_and_eager_give_the_same_tokens(llama: Path, params: SamplingParams) -> None:
    outputs = []
    for graphs in ("on", "off"):
        served = serve(llama, backend_options={"graphs": graphs})
        outputs.append(served.generate(PROMPTS, params))
        served.executor.close()
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.length_dependent])
def test_greedy_tokens_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = build(case.config())
    path = save(model, tmp_path, case.max_shard_size)
    served = open_in_process(
        EngineConfig(
            model=str(path),
            backend="cuda",
            dtype="float32",
            max_length=case.max_length,
            max_sequences=4,
            max_batch_tokens=16,
            num_blocks=40,
            block_size=16,
        )
    )
    prompt = sequence()
    params = SamplingParams(max_tokens=GENERATED, ignore_eos=True)
    # Two at once, of which the second begins amid the first: chunks, decodes and a mix of both.
    first, second = served.generate([prompt, prompt[:9]], params)
    served.executor.close()
    assert first == reference_greedy(model, prompt, GENERATED)
    assert second == reference_greedy(model, prompt[:9], GENERATED)


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    with warnings.catch_warnings():
        # That the mode is a prototype which misses some calls.
        warnings.simplefilter("ignore", UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_steady_decoding_never_waits_for_the_stream(llama: Path) -> None:
    served = serve(llama)
    served.generate(PROMPTS[:8], SamplingParams(max_tokens=3, ignore_eos=True))
    execute = served.executor.execute
    watched = 0

    def watching(batch):  # type: ignore[no-untyped-def]
        nonlocal watched
        if batch.bucket is None:
            return execute(batch)
        watched += 1
        with waiting_is_an_error():
            return execute(batch)

    served.executor.execute = watching  # type: ignore[method-assign]
    for params in (SamplingParams(max_tokens=20, ignore_eos=True), DRAWN):
        served.generate(PROMPTS[:8], params)
    assert watched > 20
    served.executor.close()
