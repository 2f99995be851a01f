"""The stand-in for Gaudi: the bridge's modules as the backend calls them, over the stand-in device `hpu`.

Signatures are those of github.com/HabanaAI/gaudi-pytorch-bridge (`python_packages/habana_frameworks/torch`, and the
schemas of its `TORCH_LIBRARY(hpu)`); the names of aten ops are those of its `scripts/hpu_op.yaml`, and for
those that it composes of docs.habana.ai, "PyTorch operators". `STANDIN=gaudi-lazy` stands in for PT_HPU_LAZY_MODE=1.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mainspring.backends.gaudi.cards import GAUDI3, Card
from mainspring.backends.gaudi.device import GaudiBackend
from mainspring.core.backend import Capabilities, DeviceInfo, Unavailable
from tests.standins.collectives import register
from tests.standins.device import GIB, StandIn
from tests.standins.recorder import Recorder, install, require

ALLOWED = """
    __lshift__ __rshift__ _index_put_impl_ _log_softmax _reshape_alias _softmax _to_copy _unsafe_view abs add addcmul
    addmm alias all amax any arange argmax bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift
    bitwise_xor bmm cat clamp clamp_min constant_pad_nd contiguous copy cos cumsum detach div embedding eq exp expand
    fill floor_divide gather ge gelu gt index index_copy index_put index_reduce index_select isfinite le lift_fresh log
    log1p logsumexp lt masked_fill maximum mean minimum mm mul native_layer_norm ne neg permute pow reciprocal remainder
    repeat reshape rsqrt scatter scatter_add select sigmoid silu sin slice sort split split_with_sizes squeeze stack sub
    sum t tanh topk transpose unbind unsqueeze view where xlogy zero
""".split()  # noqa: SIM905  a list of names is read in lines

HPU_OPS = {
    "block_softmax": "(Tensor attn, Tensor block_bias, Tensor block_groups) -> (Tensor, Tensor, Tensor)",
    "cast_to_fp8_v2": (
        "(Tensor input, Tensor? scale=None, bool stochastic_rounding=False, bool is_amax=False, "
        "ScalarType dtype=None, int[]? scale_shape=None) -> (Tensor, Tensor)"
    ),
    "fp8_gemm_v2": (
        "(Tensor A, bool trans_A, Tensor B, bool trans_B, Tensor? D, ScalarType out_dtype, Tensor? A_scale_inv=None, "
        "Tensor? B_scale_inv=None, Tensor? bias=None, bool accumulate=False, int[]? B_scale_shape=None) -> Tensor"
    ),
}
FP8_HIGHEST = GAUDI3.fp8_highest


def block_softmax(scores: Tensor, bias: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax's parts inside each block."""
    require(scores.dim() == 5, f"scores {scores.shape}")
    require(bias.shape == (len(scores), 1, 1, 1, scores.shape[-1]), f"bias {bias.shape}")
    require(groups.dtype == torch.int64 and groups.shape == scores.shape[:1], f"groups {groups.shape}")
    scores = scores + bias
    best = scores.amax(dim=-1, keepdim=True)
    weights = (scores - best).exp()
    return weights, best, weights.sum(dim=-1, keepdim=True)


def cast_to_fp8(
    x: Tensor, scale: Tensor | None, stochastic: bool, amax: bool, dtype: torch.dtype, shape: Any
) -> tuple[Tensor, Tensor]:
    """Multiplies by the scale and rounds; what is past the card's range is an error of the caller's."""
    require(dtype == torch.float8_e4m3fn and not stochastic, f"{dtype}, stochastic {stochastic}")
    scaled = x.float() * (1.0 if scale is None else scale)
    require(float(scaled.abs().amax()) <= FP8_HIGHEST * 1.001, "past what the card's float8 holds")
    return scaled.clamp(-FP8_HIGHEST, FP8_HIGHEST).to(dtype), torch.zeros(())


def fp8_gemm(
    a: Tensor, trans_a: bool, b: Tensor, trans_b: bool, d: Tensor | None, out: torch.dtype, scale_a: Tensor,
    scale_b: Tensor, bias: Tensor | None, accumulate: bool, shape: Any,
) -> Tensor:  # fmt: skip
    """A product of float8 in float32, then the scales."""
    require(a.dtype == b.dtype == torch.float8_e4m3fn, f"{a.dtype} by {b.dtype}")
    require(d is None and not accumulate, "the stand-in adds to nothing")
    require(float(b.float().abs().amax()) <= FP8_HIGHEST, "past what the card's float8 holds")
    left, right = (a.float().t() if trans_a else a.float()), (b.float().t() if trans_b else b.float())
    require(
        scale_a.shape == (left.shape[0], 1) and scale_b.shape == (right.shape[1],), f"{scale_a.shape}, {scale_b.shape}"
    )
    result = (left @ right) * scale_a * scale_b
    return (result if bias is None else result + bias.float()).to(out)


def fused_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention with an additive mask; query heads may share heads of keys."""
    require(q.dim() == 4 and q.shape[1] % k.shape[1] == 0, f"queries {q.shape}, keys {k.shape}")
    require(q.dtype == k.dtype == v.dtype == mask.dtype, f"{q.dtype}, {k.dtype}, {v.dtype}, mask {mask.dtype}")
    require(mask.shape == (1, 1, q.shape[2], k.shape[2]), f"mask {mask.shape}")
    return functional.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True)


class Event:
    """`torch.hpu.Event`: all is done when it returns."""

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class Bridge:
    """The doubles, and what was asked of them."""

    def __init__(self, device: StandIn) -> None:
        self.device = device
        self.recorder = Recorder()
        self._library = torch.library.Library("hpu", "DEF")
        for name, schema in HPU_OPS.items():
            self._library.define(name + schema)
        behaviours = {"block_softmax": block_softmax, "cast_to_fp8_v2": cast_to_fp8, "fp8_gemm_v2": fp8_gemm}
        for name, behaviour in behaviours.items():
            self._library.impl(name, self._hpu_op(name, behaviour), "PrivateUse1")
        # The device's fallback would be asked for these first.
        device.allowed |= {f"hpu::{name}" for name in HPU_OPS}
        install(self._modules())
        torch.compile = self.recorder.function("torch.compile", self._compile)  # type: ignore[assignment]

    def _hpu_op(self, name: str, behaviour: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.recorder.calls[f"hpu::{name}"] += 1
            op = getattr(torch.ops.hpu, name).default
            named = {part.name: part.default_value for part in op._schema.arguments}
            named |= dict(zip(named, args, strict=False)) | kwargs
            return self.device.own(f"hpu::{name}", behaviour, *named.values())

        return run

    def _compile(self, program: Any, *, backend: str, dynamic: bool) -> Any:
        require((backend, dynamic) == ("hpu_backend", False), f"{backend}, dynamic {dynamic}")

        def run(*args: Any) -> Any:
            with self.device.graph():
                return program(*args)

        return run

    def _modules(self) -> dict[str, dict[str, Any]]:
        of, device = self.recorder.function, self.device
        core = {"mark_step": of("mark_step", lambda device_str="", sync=False: device.flush())}
        hpu = {
            "mem_get_info": of("mem_get_info", lambda device=None: (4 * GIB, 128 * GIB)),
            "synchronize": of("synchronize", lambda: None),
            "max_memory_allocated": of("max_memory_allocated", lambda device=None: GIB),
            "reset_peak_memory_stats": of("reset_peak_memory_stats", lambda device=None: None),
            "Event": Event,
            "Stream": of("Stream", lambda device=None, priority=0: None),
            "stream": of("stream", lambda stream: _Nothing()),
            "HPUGraph": lambda: Graph(device),
        }
        metric = of("metric_global", self._metric)
        name = "habana_frameworks.torch"
        return {
            "habana_frameworks": {}, name: {}, f"{name}.core": core, f"{name}.hpu": hpu,
            f"{name}.hpu.metrics": {"metric_global": metric}, f"{name}.utils": {},
            f"{name}.utils.internal": {"is_lazy": of("is_lazy", lambda: device.lazy)}, f"{name}.hpex": {},
            f"{name}.hpex.kernels": {"FusedSDPA": self._fused()},
        }  # fmt: skip

    def _metric(self, name: str) -> Any:
        require(name == "graph_compilation", f"metric {name}")
        device = self.device

        class Metric:
            def stats(self) -> Sequence[tuple[str, int]]:
                return [("TotalNumber", device.compilations), ("TotalTime", 0), ("AvgTime", 0)]

        return Metric()

    def _fused(self) -> Any:
        class FusedSDPA:
            apply = staticmethod(self.recorder.function("FusedSDPA.apply", self._attend))

        return FusedSDPA

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        is_causal: bool = False, scale: float | None = None, softmax_mode: str = "None",
        recompute_mode: bool | None = None, valid_seq_len: Tensor | None = None, seq_padding_type: str = "left",
        return_dropout_mask: bool = False, return_attn_probs: bool = False,
    ) -> Any:  # fmt: skip
        require(softmax_mode.lower() in ("none", "fast", "fp32"), f"softmax_mode {softmax_mode}")
        require(not (is_causal or dropout_p or valid_seq_len), "the stand-in knows none of these")
        return self.device.own("FusedSDPA", fused_sdpa, q, k, v, attn_mask, scale)


class _Nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *error: object) -> None: ...


class Graph:
    """`torch.hpu.HPUGraph`: ops between begin and end, repeated on the same memory."""

    def __init__(self, device: StandIn) -> None:
        self._device = device
        self._ops: list[Any] = []

    def capture_begin(self) -> None:
        self._context = self._device.recording()
        self._ops = self._context.__enter__()

    def capture_end(self) -> None:
        self._context.__exit__(None, None, None)

    def replay(self, asynchronous: bool = False) -> None:
        for repeat in self._ops:
            repeat()


_BRIDGES: list[Bridge] = []


def bridge() -> Bridge:
    """This process's, made when it is first asked for."""
    if not _BRIDGES:
        lazy = os.environ.get("STANDIN") == "gaudi-lazy"
        device = StandIn("hpu", ALLOWED, lazy=lazy)
        register("hccl", "hpu")
        _BRIDGES.append(Bridge(device))
    return _BRIDGES[0]


class GaudiStandIn(GaudiBackend):
    """The backend on the stand-in, which it says of itself."""

    def __init__(self) -> None:
        bridge()
        super().__init__(look=lambda: [GAUDI3, GAUDI3], check=_nothing_missing)

    def devices(self) -> list[DeviceInfo] | Unavailable:
        """Host memory under the name `hpu`."""
        name = "host memory under torch's Python device"
        return [DeviceInfo(i, name, "stand-in", GAUDI3.hbm_bytes) for i in range(2)]

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        """A Gaudi 3's."""
        return super().capabilities(replace(device, arch=GAUDI3.arch))


class Float32StandIn(GaudiStandIn):
    """With one dtype and small blocks, for the host's sake: blocks of 128 are the kept report's."""

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        """A Gaudi 3's, narrowed."""
        return replace(
            super().capabilities(device), compute_dtypes=("float32",), kv_dtypes=("float32",), block_sizes=(32,)
        )


def _nothing_missing(found: Sequence[Card]) -> None:
    pass
