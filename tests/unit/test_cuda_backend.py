"""The CUDA backend where there is no GPU: what it says of one, of none, and which decodes it would capture."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mainspring.backends.cuda import CudaBackend
from mainspring.backends.cuda.driver import DriverError, Gpu
from mainspring.backends.torch_gpu.graphs import GUESSED_TOKENS, SHORT_BLOCKS, ladder
from mainspring.core.backend import DeviceInfo, ShapeLimits, Unavailable
from mainspring.core.batch import Bucket
from mainspring.core.config import EngineConfig
from mainspring.core.errors import BackendError

HOPPER = Gpu(1, "NVIDIA H100 80GB HBM3", (9, 0), 80 << 30, "GPU-1")
TURING = Gpu(0, "Tesla T4", (7, 5), 16 << 30, "GPU-0")


def backend(*gpus: Gpu, error: str = "", missing: str = "") -> CudaBackend:
    def find() -> list[Gpu]:
        if error:
            raise DriverError(error)
        return list(gpus)

    return CudaBackend(find, lambda: missing)


def test_gpus_that_are_new_enough_keep_the_driver_s_index() -> None:
    devices = backend(TURING, HOPPER).devices()
    assert devices == [DeviceInfo(1, "NVIDIA H100 80GB HBM3", "sm_90", 80 << 30, "GPU-1")]


@pytest.mark.parametrize(
    ("given", "reason", "remedy"),
    [
        (backend(TURING), "Tesla T4 has compute capability 7.5", "8.0"),
        (backend(), "the driver shows no GPU", "CUDA_VISIBLE_DEVICES"),
        (backend(HOPPER, error="no driver"), "no driver", "driver"),
        (backend(HOPPER, missing="torch is not installed"), "torch is not installed", "mainspring[cuda]"),
    ],
    ids=["old", "none", "driver", "software"],
)
def test_what_is_unavailable_says_why_and_what_to_do(given: CudaBackend, reason: str, remedy: str) -> None:
    found = given.devices()
    assert isinstance(found, Unavailable)
    assert found.reason == reason
    assert remedy in found.remedy


def test_only_what_was_seen_working_is_called_verified() -> None:
    made = backend(HOPPER)
    assert made.capabilities(DeviceInfo(0, "H100", "sm_90", 1)).verified == "L5"
    assert made.capabilities(DeviceInfo(0, "A100", "sm_80", 1)).verified == "L0"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"graph": "on"}, "did you mean 'graphs'"),
        ({"graphs": "maybe"}, "graphs=maybe is not known; use one of on, off"),
    ],
)
def test_options_are_checked_before_anything_is_opened(options: dict[str, str], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        backend(HOPPER).open(0, 0, 1, EngineConfig(model="m", backend_options=options))


@pytest.mark.parametrize("sequences", [1, 3, 8, 100, 256, 300, 512])
@pytest.mark.parametrize("blocks", [16, 4096])
def test_every_decode_has_a_bucket_that_wastes_little(sequences: int, blocks: int) -> None:
    buckets = ladder(ShapeLimits(tokens=2048, sequences=sequences, blocks=blocks))
    assert buckets.check() == []
    assert buckets.decode[-1] == Bucket(sequences, sequences, blocks)
    for rows in range(1, sequences + 1):
        bucket = buckets.smallest(rows, rows, 1, decode=True)
        assert bucket is not None
        assert bucket.tokens == bucket.sequences < max(rows + 16, 2 * rows)
        assert bucket.blocks == min(blocks, SHORT_BLOCKS)
    assert buckets.smallest(2049, 1, 1, decode=False) is None
    for tokens in range(2, 2049):
        bucket = buckets.smallest(tokens, 1, 1, decode=False)
        assert bucket is not None
        assert tokens <= bucket.tokens < tokens + max(16, tokens // 4 + 1)
        assert bucket.sequences == min(16, sequences)
        full = buckets.smallest(tokens, min(tokens, sequences), 1, decode=False)
        assert full is not None
        assert full.tokens == bucket.tokens


@pytest.mark.parametrize("sequences", [1, 8, 32, 100])
def test_guesses_are_verified_in_buckets_that_choose_behind_each_token(sequences: int) -> None:
    limits = ShapeLimits(tokens=2048, sequences=sequences, blocks=16)
    plain, guessing = ladder(limits), ladder(replace(limits, choices=8 * sequences))
    assert set(plain.prefill) < set(guessing.prefill)
    for choices in range(2, min(8 * sequences, GUESSED_TOKENS) + 1):
        bucket = guessing.smallest(choices, choices, 1, decode=False)
        assert bucket is not None
        assert choices <= bucket.tokens < choices + max(16, choices // 4 + 1)
    assert plain.smallest(8 * sequences, 8 * sequences, 1, decode=False) is None
