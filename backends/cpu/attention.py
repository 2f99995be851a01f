"""Paged attention on the CPU, exact in float32.

Decoding rows gather their blocks into scratch and are two batched products with a softmax between, in which the query
heads that share a kv head are the queries of one matrix: no head is repeated. Prefill chunks go through torch's own
attention tile by tile, or through the same products where a softcap or sinks ask for the scores.

Legend: T packed tokens, H query heads, K kv heads, D head dim, G query heads a kv head, U units (row, kv head),
Q queries of a tile, L tokens gathered a unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mainspring.backends.cpu.cache import HeadMajorKV
from mainspring.backends.cpu.steps import Chunk, Group, Part, StepPlan, Tile, View


@dataclass(frozen=True, slots=True)
class Scoring:
    """How products of queries and keys become weights."""

    scale: float
    softcap: float | None
    sinks: Tensor | None
    """[H]"""

    @property
    def plain(self) -> bool:
        """Whether a scale and a mask is all there is."""
        return self.softcap is None and self.sinks is None


def kv_write(k_TKD: Tensor, v_TKD: Tensor, kv: HeadMajorKV, layer: int, slot_T: Tensor) -> None:
    """Stores each token's key and value at its slot; slot -1 stores nothing."""
    num_heads, num_blocks, block_size, _ = kv.shape
    kept = (slot_T >= 0).nonzero().squeeze(1)
    rows = (slot_T[kept][:, None] + torch.arange(num_heads) * (num_blocks * block_size)).flatten()
    kv.write(layer, rows, k_TKD[kept], v_TKD[kept])


def attention(
    q_THD: Tensor,
    k_TKD: Tensor | None,
    v_TKD: Tensor | None,
    kv: HeadMajorKV,
    layer: int,
    plan: StepPlan,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """As `core.ops.attention.attention`, with the plan of `plan_step`."""
    if k_TKD is not None and v_TKD is not None:
        if plan.kept is not None:
            k_TKD, v_TKD = k_TKD[plan.kept], v_TKD[plan.kept]
        kv.write(layer, plan.rows, k_TKD, v_TKD)
    scoring = Scoring(scale, softcap, sinks)
    view = plan.view(window)
    if len(view.groups) == 1 and not view.chunks and not plan.idle:
        (group,) = view.groups
        if isinstance(group.tokens, slice):
            return _decode(q_THD, group, kv, layer, scoring)
    return _mixed(q_THD, view, plan, kv, layer, scoring)


def _mixed(q_THD: Tensor, view: View, plan: StepPlan, kv: HeadMajorKV, layer: int, scoring: Scoring) -> Tensor:
    """Any mix of decoding rows, chunks and padding."""
    out_THD = torch.zeros_like(q_THD) if plan.idle else torch.empty_like(q_THD)
    for group in view.groups:
        out_THD[group.tokens] = _decode(q_THD[group.tokens], group, kv, layer, scoring)
    for chunk in view.chunks:
        room = kv.room(len(chunk.blocks))
        kv.gather(layer, chunk.blocks, room)
        _prefill(q_THD, out_THD, chunk, view, room, scoring)
    return out_THD


def _decode(q_RHD: Tensor, group: Group, kv: HeadMajorKV, layer: int, scoring: Scoring) -> Tensor:
    """Rows with one query each, [R, H, D]."""
    num_kv_heads, head_dim = kv.shape[0], kv.shape[3]
    q_UGD = q_RHD.float().reshape(len(q_RHD) * num_kv_heads, -1, head_dim)
    sinks = None if scoring.sinks is None else scoring.sinks.float().view(num_kv_heads, -1, 1).repeat(len(q_RHD), 1, 1)
    outs = []
    for part in group.parts:
        kv.gather(layer, part.blocks, part.room)
        k_ULD, v_ULD = (x.float() for x in part.gathered)
        # With beta 0 the first argument is not read; alpha spares a product of its own.
        scores = torch.baddbmm(
            q_UGD.new_empty(1), q_UGD[part.units], k_ULD.transpose(1, 2), beta=0, alpha=scoring.scale
        )
        _hide(part, scores, v_ULD, scoring.softcap)
        weights = _softmax(scores, None if sinks is None else sinks[part.units])
        outs.append(torch.bmm(weights, v_ULD))
    out_UGD = outs[0] if len(outs) == 1 else torch.cat(outs)
    return out_UGD.view(q_RHD.shape).to(q_RHD.dtype)


def _hide(part: Part, scores_UGL: Tensor, v_ULD: Tensor, softcap: float | None) -> None:
    """Caps the scores, then hides what is not to be seen; in place."""
    if softcap is not None:
        _cap(scores_UGL, softcap)
    if part.hidden is not None:
        scores_UGL[..., part.shown :].masked_fill_(part.hidden.unsqueeze(1), float("-inf"))
        # A weight of 0 hides a value only if it is finite, and what a block held before may not be.
        v_ULD[:, part.shown :].masked_fill_(part.hidden.unsqueeze(2), 0)


def _prefill(
    q_THD: Tensor, out_THD: Tensor, chunk: Chunk, view: View, gathered: tuple[Tensor, Tensor], scoring: Scoring
) -> None:
    """One row's queries, tile by tile, into `out_THD`."""
    num_kv_heads, head_dim = view.num_kv_heads, q_THD.shape[-1]
    k_KLD, v_KLD = (x.view(num_kv_heads, -1, head_dim) for x in gathered)
    attend = _attend_plainly if scoring.plain else _attend
    for tile in chunk.tiles:
        q_QHD = q_THD[tile.tokens]
        q_KGQD = q_QHD.reshape(len(q_QHD), num_kv_heads, -1, head_dim).permute(1, 2, 0, 3)
        out_KGQD = attend(q_KGQD, k_KLD[:, None, tile.seen], v_KLD[:, None, tile.seen], _mask(tile, view), scoring)
        out_THD[tile.tokens] = out_KGQD.permute(2, 0, 1, 3).flatten(1, 2)


def _mask(tile: Tile, view: View) -> Tensor | None:
    if tile.causal:
        return None
    return view.visible[-(tile.tokens.stop - tile.tokens.start) :, -(tile.seen.stop - tile.seen.start) :]


def _attend_plainly(q_KGQD: Tensor, k_K1LD: Tensor, v_K1LD: Tensor, visible: Tensor | None, scoring: Scoring) -> Tensor:
    """Torch's own attention; kv heads are its batch, and the heads that share one see it through a stride of 0."""
    shape = (-1, q_KGQD.shape[1], -1, -1)
    return F.scaled_dot_product_attention(
        q_KGQD,
        k_K1LD.to(q_KGQD.dtype).expand(shape),
        v_K1LD.to(q_KGQD.dtype).expand(shape),
        attn_mask=visible,
        is_causal=visible is None,
        scale=scoring.scale,
    )


def _attend(q_KGQD: Tensor, k_K1LD: Tensor, v_K1LD: Tensor, visible: Tensor | None, scoring: Scoring) -> Tensor:
    """Scores, capped and masked, with sinks beside them."""
    scores = torch.matmul(q_KGQD.float() * scoring.scale, k_K1LD.float().transpose(2, 3))
    if scoring.softcap is not None:
        _cap(scores, scoring.softcap)
    if visible is None:
        visible = torch.ones(scores.shape[2:], dtype=torch.bool).tril()
    scores.masked_fill_(~visible, float("-inf"))
    sinks = None if scoring.sinks is None else scoring.sinks.float().view(*scores.shape[:2], 1, 1)
    weights = _softmax(scores, None if sinks is None else sinks.expand(*scores.shape[:3], 1))
    return torch.matmul(weights, v_K1LD.float()).to(q_KGQD.dtype)


def _cap(scores: Tensor, softcap: float) -> None:
    scores.div_(softcap).tanh_().mul_(softcap)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Over the last dimension; sinks [..., 1] take their share and have no value."""
    if sinks is None:
        return torch.softmax(scores, dim=-1)
    return torch.softmax(torch.cat((scores, sinks), dim=-1), dim=-1)[..., :-1]
