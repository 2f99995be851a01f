"""Gaudi as a backend: what the cards declare, and the device that joins this folder's rooms.

torch is imported in methods, when a device is open: listing backends must not load it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mainspring.backends.bucketed.device import BucketedDevice
from mainspring.backends.bucketed.ladders import LADDERS, Rungs, read_ladders
from mainspring.backends.gaudi.cards import Card, cards, of_arch
from mainspring.backends.gaudi.vendor import REMEDY, Habana, VendorMissing, check
from mainspring.core.backend import (
    AttentionMetadata,
    Backend,
    Capabilities,
    Device,
    DeviceInfo,
    Event,
    PackedLinear,
    Program,
    Unavailable,
    Verdict,
    WeightScheme,
)
from mainspring.core.batch import Bucket
from mainspring.core.errors import BackendError, unknown

if TYPE_CHECKING:
    import torch

    from mainspring.backends.bucketed.cache import BlockMajorKV
    from mainspring.backends.gaudi.attention import GaudiPlan
    from mainspring.backends.gaudi.fp8 import Float8
    from mainspring.core.config import EngineConfig

GRAPHS, KERNELS = "hpu_graphs", "kernels"
OPTIONS = (*LADDERS, GRAPHS, KERNELS)
"""`--backend-option` keys: ladders of buckets; `hpu_graphs=on` captures buckets in lazy mode; `kernels=off` composes
attention of torch's ops where the bridge has fused ones."""

CLIMB = Rungs(rows=(4, 2), tokens=(128, 2), blocks=(4, 2))
"""A block holds 128 tokens, so ladders of blocks start low."""
FP8_SCHEME = WeightScheme(weight="float8_e4m3fn", bits=8, activation="float8_e4m3fn", activation_granularity="token")


class GaudiBackend(Backend):
    """Answers questions about Gaudi by the PCI bus and by what is installed."""

    name = "gaudi"
    contract_version = 1
    preference = 100

    def __init__(self, look: Callable[[], list[Card]] = cards, check: Callable[[Sequence[Card]], None] = check) -> None:
        self._look = look
        self._check = check

    def devices(self) -> list[DeviceInfo] | Unavailable:
        """The cards, where there is software for them."""
        found = self._look()
        try:
            self._check(found)
        except VendorMissing as error:
            return Unavailable(str(error), REMEDY)
        return [DeviceInfo(i, f"Intel {card.arch}", card.arch, card.hbm_bytes) for i, card in enumerate(found)]

    def capabilities(self, device: DeviceInfo) -> Capabilities:
        """One shape a bucket, sampling included. Results wait in the device until they are asked for."""
        return Capabilities(
            compute_dtypes=("bfloat16", "float32"),
            kv_dtypes=("bfloat16", "float32"),
            weight_schemes=(FP8_SCHEME,) if of_arch(device.arch).fp8_highest else (),
            block_sizes=(128,),
            attention=frozenset({"sliding_window", "softcap", "sinks"}),
            shapes="bucketed",
            mixes_prefill_and_decode=False,
            graphs="ahead_of_time",
            collectives="hccl",
            asynchronous=True,
            verified="L2",
        )

    def open(self, index: int, rank: int, world: int, options: EngineConfig) -> Device:
        """Starts the bridge in this process. It takes the module that HABANA_VISIBLE_MODULES or the rank says."""
        given = options.backend_options
        if wrong := [unknown("backend option", key, OPTIONS) for key in given if key not in OPTIONS]:
            raise BackendError(wrong)
        by_hand = read_ladders(given)
        found = self._look()
        try:
            self._check(found)
        except VendorMissing as error:
            raise BackendError(f"{error}; {REMEDY}") from error
        vendor = Habana()
        if given.get(GRAPHS) == "on" and not vendor.lazy:
            raise BackendError(f"--backend-option {GRAPHS}=on needs the bridge's lazy mode: set PT_HPU_LAZY_MODE=1")
        return GaudiDevice(vendor, found[index], by_hand, given)


class GaudiDevice(BucketedDevice):
    """One opened card."""

    torch_device = "hpu"

    def __init__(
        self, vendor: Habana, card: Card, by_hand: Mapping[str, tuple[int, ...]], options: Mapping[str, str]
    ) -> None:
        super().__init__(vendor, by_hand, CLIMB)
        self.vendor = vendor
        self._captures = options.get(GRAPHS) == "on"
        self._kernels = options.get(KERNELS) != "off"
        self._float8 = self._find_float8(card)

    def _find_float8(self, card: Card) -> Float8 | None:
        from mainspring.backends.gaudi.fp8 import Float8

        ops = self.vendor.fp8_ops()
        return Float8(*ops, card.fp8_highest) if ops is not None and card.fp8_highest else None

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes, as the bridge says."""
        self.vendor.synchronize()
        return self.vendor.memory()

    def peak_bytes(self) -> int:
        """As the bridge says."""
        return self.vendor.peak_bytes()

    def event(self) -> Event:
        """The bridge's own."""
        event: Event = self.vendor.event()
        return event

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        """Attention, and what may not be empty: the graph compiler fuses the rest."""
        from mainspring.backends.bucketed.attention import kv_write
        from mainspring.backends.bucketed.sampling import logprobs
        from mainspring.backends.gaudi.attention import GaudiAttention

        fused = self.vendor.fused_attention() if self._kernels else None
        softmax = self.vendor.block_softmax() if self._kernels else None
        attention = GaudiAttention(fused=fused, block_softmax=softmax)
        return {"attention": attention, "kv_write": kv_write, "logprobs": logprobs}

    def prepare_attention(self, metadata: AttentionMetadata, kv: BlockMajorKV) -> GaudiPlan:
        """Where tokens stand, in the shapes of the bucket; for a decode, its list of blocks."""
        from mainspring.backends.gaudi.attention import plan_gaudi

        return plan_gaudi(metadata, kv)

    def supports(self, scheme: WeightScheme, in_features: int, out_features: int) -> Verdict:
        """float8 where card and bridge have it."""
        if scheme == FP8_SCHEME and self._float8 is None:
            return Verdict(False, "the bridge has no cast_to_fp8_v2 and fp8_gemm_v2 for this card")
        return Verdict(True) if scheme == FP8_SCHEME else super().supports(scheme, in_features, out_features)

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, torch.Tensor]) -> PackedLinear:
        """float8 in the card's range; everything else as it is."""
        if scheme == FP8_SCHEME and self._float8 is not None:
            return self._float8.pack(scheme, tensors)
        return super().pack(scheme, tensors)

    def quantized_linear(self, x: torch.Tensor, packed: PackedLinear) -> torch.Tensor:
        """By the matrix unit."""
        if packed.scheme == FP8_SCHEME and self._float8 is not None:
            return self._float8.linear(x, packed)
        return super().quantized_linear(x, packed)

    def quantize_activation(self, x: torch.Tensor, scheme: WeightScheme) -> tuple[torch.Tensor, torch.Tensor]:
        """Each token by a scale of its own."""
        if self._float8 is None:
            return super().quantize_activation(x, scheme)
        return self._float8.quantize(x)

    def compile(self, program: Program, bucket: Bucket | None) -> Program:
        """torch.compile, or a lazy graph that needs no more than its flush, or one that is captured."""
        if self._captures:
            from mainspring.backends.gaudi.graphs import captured

            return captured(program, self.vendor.capture)
        return super().compile(program, bucket)

    def artifact_key(self) -> str:
        """What the graph compiler's programs depend on."""
        import torch

        mode = "lazy" if self.vendor.lazy else "eager"
        return f"torch-{torch.__version__}-{self.vendor.version()}-{mode}"
