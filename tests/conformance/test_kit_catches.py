"""The kit catches wrong backends and names what is wrong: each mutant differs from the reference in one mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mainspring.backends.torch_gpu.schemes import SCHEMES
from mainspring.core.backend import (
    AttentionMetadata,
    Capabilities,
    Device,
    KVSpec,
    PackedLinear,
    ShapeLimits,
    Verdict,
    WeightScheme,
)
from mainspring.core.batch import Bucket, Buckets
from mainspring.core.conformance import elementwise, heads, linear, quantized, sampling
from mainspring.core.conformance.attention import AttentionChecks
from mainspring.core.conformance.checks import check_device, run
from mainspring.core.conformance.report import Finding
from mainspring.core.ops import Ops
from mainspring.core.ops.attention import PagedKV, attention
from mainspring.core.ops.heads import HeadNorms, HeadsStep, rotate_and_store
from mainspring.core.ops.quantized import quantize_activation, quantize_weight, quantized_linear
from mainspring.core.ops.sample import SamplingTensors

INT8 = WeightScheme(weight="int8", bits=8)
INT4 = WeightScheme(weight="int4", bits=4, group_size=32, symmetric=False)
CAPABILITIES = Capabilities(
    compute_dtypes=("float32",),
    kv_dtypes=("float32",),
    weight_schemes=(INT8, INT4),
    block_sizes=(16,),
    attention=frozenset({"sliding_window", "softcap", "sinks"}),
)
REFERENCE = Ops()


class ReferenceDevice(Device):
    """The reference in everything, quantized linears too; mutants override one thing."""

    torch_device = "cpu"

    def __init__(self, **wrong: Callable[..., Any]) -> None:
        self._wrong = wrong

    def memory(self) -> tuple[int, int]:
        return 1 << 30, 1 << 30

    def allocate_kv(self, spec: KVSpec, num_blocks: int) -> PagedKV:
        return PagedKV.allocate(spec, num_blocks, "cpu")

    def synchronize(self) -> None:
        pass

    def ops(self) -> Mapping[str, Callable[..., Any]]:
        return self._wrong

    def supports(self, scheme: WeightScheme, in_features: int, out_features: int) -> Verdict:
        return Verdict(True)

    def pack(self, scheme: WeightScheme, tensors: Mapping[str, Tensor]) -> PackedLinear:
        neutral = dict(tensors)
        if scheme.bits < 16 and "scales" not in neutral:
            neutral |= quantize_weight(neutral["weight"], scheme)
        out_features, in_features = neutral["weight"].shape
        return PackedLinear(scheme, in_features, out_features, neutral, neutral.get("bias"))

    def quantize_activation(self, x: Tensor, scheme: WeightScheme) -> tuple[Tensor, Tensor]:
        return quantize_activation(x, scheme)

    def quantized_linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        if packed.scheme.bits >= 16:
            return torch.nn.functional.linear(x, packed.data["weight"], packed.bias)
        return quantized_linear(x, packed.scheme, packed.data, packed.bias)


def cache_failures(device: Device, capabilities: Capabilities = CAPABILITIES) -> set[str]:
    return failed(AttentionChecks(device, capabilities).findings())


def op_failures(device: Device) -> set[str]:
    return failed(run(list(elementwise.checks(CAPABILITIES)), device))


def linear_failures(device: Device) -> set[str]:
    return failed(run([*linear.checks(CAPABILITIES), *quantized.checks(CAPABILITIES)], device))


def failed(findings: Iterable[Finding]) -> set[str]:
    return {finding.subject for finding in findings if not finding.ok}


def test_the_reference_conforms() -> None:
    findings = list(check_device(ReferenceDevice(), CAPABILITIES))
    assert failed(findings) == set()
    assert {finding.origin for finding in findings if finding.subject in elementwise.CASES} == {"falls back"}


def test_the_reference_conforms_in_every_scheme_of_gpus() -> None:
    capabilities = replace(CAPABILITIES, weight_schemes=SCHEMES)
    findings = run(list(quantized.checks(capabilities)), ReferenceDevice())
    assert failed(findings) == set()
    assert all(finding.cases for finding in findings if not finding.subject.endswith("activations"))


# --- attention ---


def changed(change: Callable[[AttentionMetadata], AttentionMetadata]) -> Callable[..., Tensor]:
    """The reference, told something else about the step; keys and values still go where they belong."""

    def wrong(
        q: Tensor, k: Tensor | None, v: Tensor | None, kv: PagedKV, layer: int, plan: Any, **named: Any
    ) -> Tensor:
        if k is not None:
            REFERENCE.kv_write(k, v, kv, layer, plan.slot)
        return attention(q, None, None, kv, layer, change(plan), **named)

    return wrong


def block_table_off_by_one(plan: AttentionMetadata) -> AttentionMetadata:
    return replace(plan, block_table=plan.block_table.roll(1, dims=-1))


def unmasked_tail(plan: AttentionMetadata) -> AttentionMetadata:
    """Attends to whole blocks."""
    counts = plan.query_start.diff()
    whole = torch.where((plan.kv_length > 0) & (counts == 1), (plan.kv_length + 15) // 16 * 16, plan.kv_length)
    return replace(plan, kv_length=whole)


def wrong_head_group(q: Tensor, *rest: Any, **named: Any) -> Tensor:
    """Query head h reads kv head h mod K instead of h // G."""
    num_kv_heads = rest[2].keys[0].shape[2]
    order = torch.arange(q.shape[1]).view(-1, num_kv_heads).t().flatten()
    if named.get("sinks") is not None:
        named["sinks"] = named["sinks"][order]
    return attention(q[:, order], *rest, **named)[:, order.argsort()]


def window_off_by_one(*arguments: Any, window: int | None, **named: Any) -> Tensor:
    return attention(*arguments, window=None if window is None else window + 1, **named)


def scale_left_out(*arguments: Any, scale: float, **named: Any) -> Tensor:
    return attention(*arguments, scale=1.0, **named)


def sinks_left_out(*arguments: Any, sinks: Tensor | None, **named: Any) -> Tensor:
    return attention(*arguments, sinks=None, **named)


def layers_confused(q: Tensor, k: Any, v: Any, kv: PagedKV, layer: int, plan: Any, **named: Any) -> Tensor:
    return attention(q, k, v, kv, 0, plan, **named)


def attends_before_it_writes(q: Tensor, k: Any, v: Any, kv: PagedKV, layer: int, plan: Any, **named: Any) -> Tensor:
    out = attention(q, None, None, kv, layer, plan, **named)
    if k is not None:
        REFERENCE.kv_write(k, v, kv, layer, plan.slot)
    return out


def padding_is_garbage(*arguments: Any, **named: Any) -> Tensor:
    out = attention(*arguments, **named)
    out[arguments[5].slot < 0] = 1.0
    return out


def softcap_after_mask(
    q: Tensor, k: Any, v: Any, kv: PagedKV, layer: int, plan: AttentionMetadata, *, softcap: float | None, **named: Any
) -> Tensor:
    """Hidden scores come out of the cap as -softcap and keep a share."""
    out = attention(q, k, v, kv, layer, plan, softcap=softcap, **named)
    if softcap is None or named["sinks"] is not None:
        return out
    for row, (start, length) in enumerate(zip(plan.query_start.tolist(), plan.kv_length.tolist(), strict=False)):
        count = int(plan.query_start[row + 1]) - start
        for query in range(count if length else 0):
            out[start + query] = _capped_last(
                q[start + query], _cached(kv, layer, plan, row), length - count + query, softcap, named
            )
    return out


def _cached(kv: PagedKV, layer: int, plan: AttentionMetadata, row: int) -> tuple[Tensor, Tensor]:
    length = int(plan.kv_length[row])
    blocks = plan.block_table[row, : -(-length // 16)].long()
    return kv.keys[layer][blocks].flatten(0, 1)[:length], kv.values[layer][blocks].flatten(0, 1)[:length]


def _capped_last(
    q_HD: Tensor, cached: tuple[Tensor, Tensor], position: int, softcap: float, named: Mapping[str, Any]
) -> Tensor:
    keys, values = (x.repeat_interleave(len(q_HD) // x.shape[1], dim=1) for x in cached)
    scores = torch.einsum("hd,khd->hk", q_HD, keys) * named["scale"]
    places = torch.arange(len(keys))
    hidden = places > position
    if named["window"] is not None:
        hidden = hidden | (places <= position - named["window"])
    scores = softcap * torch.tanh(scores.masked_fill(hidden, float("-inf")) / softcap)
    return torch.einsum("hk,khd->hd", scores.softmax(-1), values)


def padding_that_writes(k: Tensor, v: Tensor, kv: PagedKV, layer: int, slot: Tensor) -> None:
    """-1 as an index is the last slot."""
    for cache, x in ((kv.keys[layer], k), (kv.values[layer], v)):
        cache.view(-1, *cache.shape[2:])[slot] = x


def writes_through(write: Callable[..., None]) -> Callable[..., Tensor]:
    def wrong(q: Tensor, k: Any, v: Any, kv: PagedKV, layer: int, plan: Any, **named: Any) -> Tensor:
        if k is not None:
            write(k, v, kv, layer, plan.slot)
        return attention(q, None, None, kv, layer, plan, **named)

    return wrong


@pytest.mark.parametrize(
    ("wrong", "caught"),
    [
        (changed(block_table_off_by_one), "attention"),
        (changed(unmasked_tail), "attention"),
        (wrong_head_group, "attention"),
        (scale_left_out, "attention"),
        (layers_confused, "attention"),
        (attends_before_it_writes, "attention"),
        (padding_is_garbage, "attention"),
        (writes_through(padding_that_writes), "padding is inert"),
    ],
)
def test_wrong_attention_is_caught(wrong: Callable[..., Tensor], caught: str) -> None:
    assert caught in cache_failures(ReferenceDevice(attention=wrong))


@pytest.mark.parametrize(
    ("wrong", "caught"),
    [
        (window_off_by_one, {"attention, sliding window", "attention, softcap", "attention, sinks"}),
        (softcap_after_mask, {"attention, softcap"}),
        (sinks_left_out, {"attention, sinks"}),
    ],
)
def test_a_feature_that_is_wrong_leaves_the_others_alone(wrong: Callable[..., Tensor], caught: set[str]) -> None:
    assert cache_failures(ReferenceDevice(attention=wrong)) == caught


def test_kv_write_of_padding_is_caught() -> None:
    assert "padding is inert" in cache_failures(ReferenceDevice(kv_write=padding_that_writes))


def test_kv_write_that_swaps_keys_and_values_is_caught() -> None:
    def wrong(k: Tensor, v: Tensor, *rest: Any) -> None:
        REFERENCE.kv_write(v, k, *rest)

    assert cache_failures(ReferenceDevice(kv_write=wrong)) == {"kv_write"}


# --- the cache ---


class StaleCopies(ReferenceDevice):
    """Copies the first layer only."""

    def copy_blocks(self, kv: PagedKV, pairs: Sequence[tuple[int, int]]) -> None:
        PagedKV(kv.keys[:1], kv.values[:1]).copy_blocks(pairs)


class KeysOnly(ReferenceDevice):
    def copy_blocks(self, kv: PagedKV, pairs: Sequence[tuple[int, int]]) -> None:
        PagedKV(kv.keys, kv.keys).copy_blocks(pairs)


class BackwardSwaps(ReferenceDevice):
    def swap_blocks(self, kv: PagedKV, host: PagedKV, pairs: Sequence[tuple[int, int]]) -> None:
        host.copy_blocks_from(kv, [(destination, source) for source, destination in pairs])


@pytest.mark.parametrize(
    ("device", "caught"),
    [(StaleCopies(), "copy_blocks"), (KeysOnly(), "copy_blocks"), (BackwardSwaps(), "swap_blocks")],
)
def test_wrong_copies_are_caught(device: Device, caught: str) -> None:
    assert cache_failures(device) == {caught}


# --- linears ---


class ScaleLeftOut(ReferenceDevice):
    def quantized_linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        if packed.scheme == INT8:
            ones = {**packed.data, "scales": torch.ones_like(packed.data["scales"])}
            return quantized_linear(x, packed.scheme, ones, packed.bias)
        return super().quantized_linear(x, packed)


class NeighboursScale(ReferenceDevice):
    """Each output channel takes the next one's scales."""

    def quantized_linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        if packed.scheme.bits < 16:
            rolled = {**packed.data, "scales": packed.data["scales"].roll(1, dims=-1 if packed.scheme == INT4 else 0)}
            return quantized_linear(x, packed.scheme, rolled, packed.bias)
        return super().quantized_linear(x, packed)


class ZeroPointOffByOne(ReferenceDevice):
    """AutoGPTQ's old format stored zeros minus one."""

    def quantized_linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        if "zeros" in (packed.data if packed.scheme.bits < 16 else ()):
            return quantized_linear(x, packed.scheme, {**packed.data, "zeros": packed.data["zeros"] - 1}, packed.bias)
        return super().quantized_linear(x, packed)


class BiasLeftOut(ReferenceDevice):
    def quantized_linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        return super().quantized_linear(x, replace(packed, bias=None))


class RefusesItsOwn(ReferenceDevice):
    def supports(self, scheme: WeightScheme, in_features: int, out_features: int) -> Verdict:
        return Verdict(scheme != INT4, "not today")


INT8_SUBJECT, INT4_SUBJECT = "linear, int8", "linear, int4 in groups of 32, asymmetric"
OTHERS = quantized.OTHER_SIZES


@pytest.mark.parametrize(
    ("device", "caught"),
    [
        (ScaleLeftOut(), {INT8_SUBJECT}),
        (NeighboursScale(), {INT8_SUBJECT, INT4_SUBJECT, OTHERS}),
        (ZeroPointOffByOne(), {INT4_SUBJECT, OTHERS}),
        (BiasLeftOut(), {INT8_SUBJECT, INT4_SUBJECT, "linear, float32"}),
        (RefusesItsOwn(), {INT4_SUBJECT}),
    ],
)
def test_wrong_linears_are_caught(device: Device, caught: set[str]) -> None:
    assert linear_failures(device) == caught


# --- small ops ---


def interleaved_rope(q: Tensor, k: Tensor, positions: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs neighbours (GPT-J) instead of halves."""

    def reordered(x: Tensor, back: bool) -> Tensor:
        order = torch.arange(table.shape[1]).view(-1, 2).t().flatten()
        order = torch.cat((order.argsort() if back else order, torch.arange(table.shape[1], x.shape[-1])))
        return x[..., order]

    q, k = REFERENCE.rope(reordered(q, back=False), reordered(k, back=False), positions, table)
    return reordered(q, back=True), reordered(k, back=True)


WRONG_OPS: dict[str, Callable[..., Any]] = {
    "rms_norm": lambda x, weight, epsilon: REFERENCE.rms_norm(x, weight, 0.0),
    "add_rms_norm": lambda x, residual, weight, epsilon: (REFERENCE.rms_norm(x + residual, weight, epsilon), residual),
    "layer_norm": lambda x, weight, bias, epsilon: REFERENCE.layer_norm(x, weight, None, epsilon),
    "rope": interleaved_rope,
    "silu_mul": lambda x: REFERENCE.silu_mul(torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1)),
    "gelu_mul": lambda x, tanh: REFERENCE.gelu_mul(x, not tanh),
    "gelu": lambda x, tanh: REFERENCE.gelu(x, False),
    "route": lambda scores, chosen, normalized: REFERENCE.route(scores, chosen, not normalized),
    "moe": lambda x, gate_up, down, weights, experts: REFERENCE.moe(x, gate_up, down, weights.flip(1), experts),
    "embedding": lambda tokens, table: REFERENCE.embedding(tokens, table).flip(0),
}


def keys_as_they_came(q: Tensor, k: Tensor, v: Tensor, step: HeadsStep, norms: HeadNorms | None) -> Tensor:
    """Norms the queries alone."""
    if norms is not None:
        norms = HeadNorms(norms.q, torch.ones_like(norms.k), norms.epsilon)
    return rotate_and_store(q, k, v, step, norms)


def values_forgotten(q: Tensor, k: Tensor, v: Tensor, step: HeadsStep, norms: HeadNorms | None) -> Tensor:
    """Stores zeros in the place of values."""
    return rotate_and_store(q, k, torch.zeros_like(v), step, norms)


@pytest.mark.parametrize("wrong", [keys_as_they_came, values_forgotten])
def test_heads_stored_wrongly_are_caught(wrong: Callable[..., Tensor]) -> None:
    assert failed(run(list(heads.checks(CAPABILITIES)), ReferenceDevice(rotate_and_store=wrong))) == {heads.SUBJECT}


def test_heads_stored_rightly_pass() -> None:
    device = ReferenceDevice(rotate_and_store=rotate_and_store)
    (finding,) = run(list(heads.checks(CAPABILITIES)), device)
    assert finding.cases > 40
    assert not finding.problems


@pytest.mark.parametrize("name", WRONG_OPS)
def test_wrong_small_ops_are_caught(name: str) -> None:
    assert op_failures(ReferenceDevice(**{name: WRONG_OPS[name]})) == {name}


def weightless_experts_multiplied(x: Tensor, gate_up: Tensor, down: Tensor, *routed: Tensor) -> Tensor:
    """Trusts that nothing times 0 is anything."""
    weights, experts = routed
    parts = [
        REFERENCE.moe(x, gate_up, down, torch.ones_like(weights[:, :1]), experts[:, place, None])
        for place in range(weights.shape[1])
    ]
    return (torch.stack(parts, 1) * weights[:, :, None]).sum(1)


def nothing_behind_the_weightless(x: Tensor, gate_up: Tensor, down: Tensor, *routed: Tensor) -> Tensor:
    """A token's first choice without weight ends its choices."""
    weights, experts = routed
    return REFERENCE.moe(x, gate_up, down, weights * (weights != 0).cumprod(-1), experts)


@pytest.mark.parametrize("wrong", [weightless_experts_multiplied, nothing_behind_the_weightless])
def test_experts_without_weight_that_matter_are_caught(wrong: Callable[..., Tensor]) -> None:
    (finding,) = [
        found for found in run(list(elementwise.checks(CAPABILITIES)), ReferenceDevice(moe=wrong)) if not found.ok
    ]
    assert finding.subject == "moe"
    assert all("without weight" in problem or "no weight" in problem for problem in finding.problems)


def mass_before_the_cut(logits: Tensor, tensors: SamplingTensors) -> Tensor:
    """top_p of what is left after the token that crosses it, as if it had to fit."""
    return REFERENCE.sample(logits, replace(tensors, top_p=tensors.top_p * 0.9))


def seeds_left_out(logits: Tensor, tensors: SamplingTensors) -> Tensor:
    return REFERENCE.sample(logits, replace(tensors, key=torch.zeros_like(tensors.key)))


def logprobs_of_the_best_only(logits: Tensor, ids: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised over the k likeliest instead of the vocabulary."""
    chosen, top_ids, top = REFERENCE.logprobs(logits, ids, k)
    return chosen, top_ids, top.log_softmax(-1)


def ids_that_stay_behind(logits: Tensor, tensors: SamplingTensors, tokens: Tensor, rows: Tensor) -> Tensor:
    """The next step would read what the table held before."""
    return REFERENCE.choose(logits, tensors, tokens.clone(), rows)


def nothing_amiss(logits: Tensor, tensors: SamplingTensors, tokens: Tensor, rows: Tensor) -> Tensor:
    """A row of NaN passes for a choice."""
    chosen = REFERENCE.choose(logits, tensors, tokens, rows)
    chosen[1] = 0
    return chosen


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sample", mass_before_the_cut),
        ("sample", seeds_left_out),
        ("choose", ids_that_stay_behind),
        ("choose", nothing_amiss),
        ("logprobs", logprobs_of_the_best_only),
    ],
)
def test_wrong_choices_are_caught(name: str, wrong: Callable[..., Any]) -> None:
    # Where a backend has no `choose` of its own, it is made of its `sample`.
    expected = {"sample", "choose"} if name == "sample" else {name}
    assert failed(run(list(sampling.checks(CAPABILITIES)), ReferenceDevice(**{name: wrong}))) == expected


def test_an_op_that_raises_is_a_finding() -> None:
    def wrong(x: Tensor) -> Tensor:
        raise RuntimeError("no kernel image is available")

    findings = check_device(ReferenceDevice(silu_mul=wrong), CAPABILITIES, ["silu_mul"])
    (problem, *_) = next(finding.problems for finding in findings if finding.subject == "silu_mul")
    assert "no kernel image is available" in problem


# --- promises ---


def test_batch_invariance_is_checked_where_it_is_declared() -> None:
    def wrong(q: Tensor, *rest: Any, **named: Any) -> Tensor:
        return attention(q, *rest, **named) * (1 + 1e-6 * (len(q) > 3))

    device = ReferenceDevice(attention=wrong)
    assert cache_failures(device) == set()
    assert cache_failures(device, replace(CAPABILITIES, batch_invariant=True)) == {"batch invariance"}


class Bucketed(ReferenceDevice):
    """Takes two shapes and refuses all others."""

    def buckets(self, limits: ShapeLimits) -> Buckets:
        return Buckets((Bucket(8, 8, 8),), (Bucket(limits.tokens, 8, 8),))

    def prepare_attention(self, metadata: AttentionMetadata, kv: PagedKV) -> AttentionMetadata:
        shape = (len(metadata.slot), *metadata.block_table.shape)
        if shape not in {(8, 8, 8), (128, 8, 8)}:
            raise ValueError(f"no program for {shape}")
        return metadata


def test_devices_with_buckets_see_their_shapes_only() -> None:
    capabilities = replace(CAPABILITIES, shapes="bucketed", mixes_prefill_and_decode=False, batch_invariant=True)
    assert cache_failures(Bucketed(), capabilities) == set()
