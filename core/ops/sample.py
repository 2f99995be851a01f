"""Choosing tokens: temperature, truncation (top-k, top-p, typical-p, min-p) and the draw, for all rows at once.

What happens to logits before (penalties, logit_bias, min_tokens) is `core/execution/sampling.py`.

The noise of a draw is a function of (seed, position, token id) and of nothing else, so a request gets the same tokens
whatever shares its batch, after a preemption, and on every backend. The exact definition, for kernels:

    h = MurmurHash3_x86_32(seed low, seed high, position, token id; hash seed 0), four little-endian 32-bit words
    u = (h mod 2**31) * s + 2**-32   with   s = 2**-31 * (1 - 2**-24), in float32: 0 < u < 1
    gumbel = -log(-log1p(-u))

MurmurHash3 is Austin Appleby's, public domain (github.com/aappleby/smhasher). log1p keeps the resolution where draws
are decided, at small u. The token is argmax(scores / temperature + gumbel): the Gumbel-max trick (Gumbel 1954; Maddison
et al. 2014), which draws from the softmax without computing it.

Legend: N rows that choose a token, S those of them that draw at random, V vocabulary, W sorted candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingTensors:
    """How N rows choose. Only `position` changes from step to step; the rest lives as long as the batch's composition.

    The host values say which stages no row needs, so that nothing is launched for them.
    """

    temperature: Tensor
    """[N] float32; 0 is greedy, and then no other field of the row matters."""
    top_k: Tensor
    """[N] int32; 0 keeps all."""
    top_p: Tensor
    """[N] float32; 1 keeps all."""
    typical_p: Tensor
    """[N] float32; 1 keeps all."""
    min_p: Tensor
    """[N] float32; 0 keeps all."""
    key: Tensor
    """[N] int32: the state of MurmurHash3_x86_32 after the two words of the row's seed (`seed_key`)."""
    position: Tensor
    """[N] int32: where in its sequence the chosen token will stand."""
    sampled: Tensor | None
    """[S] int64: which rows have a temperature above 0. None: all N go the same way, and greedy rows stay greedy."""
    any_sampled: bool
    any_top_k: bool
    any_top_p: bool
    any_typical_p: bool
    any_min_p: bool
    max_top_k: int
    """Largest top_k if every drawing row has one, else 0: how many candidates need sorting."""


PEEKS = (512, 8192)
"""Candidates to look at before all are sorted. The first hold most nuclei, at a fiftieth of a whole sort's time."""


def sample(logits_NV: Tensor, sampling: SamplingTensors, *, peek: bool = False) -> Tensor:
    """One token id a row: [N, V] float -> [N] int32.

    A row whose logits are not finite gets an arbitrary id below V and touches no other row. `peek` is for devices whose
    values the host can read at no cost; the result is the same, bit for bit.
    """
    logits_NV = logits_NV.float()
    if not sampling.any_sampled:
        ids_N = logits_NV.argmax(dim=-1)
    elif sampling.sampled is None:
        ids_N = _draw(logits_NV, sampling, slice(None), peek)
    else:
        ids_N = logits_NV.argmax(dim=-1)
        ids_N[sampling.sampled] = _draw(logits_NV, sampling, sampling.sampled, peek)
    return ids_N.clamp(0, logits_NV.shape[-1] - 1).int()


def truncate(logits_NV: Tensor, sampling: SamplingTensors, rows: Tensor | slice, *, peek: bool = False) -> Tensor:
    """Scores of the chosen rows after temperature and truncation, float32, -inf for tokens that are cut: [S, V].

    Only differences within a row mean anything. Rows of temperature 0 keep their order.
    """
    scores_SV = logits_NV[rows].float()
    temperature_S = sampling.temperature[rows]
    # Subtracting the maximum first keeps tiny temperatures from overflowing.
    scores_SV = scores_SV - scores_SV.amax(dim=-1, keepdim=True)
    scores_SV /= torch.where(temperature_S > 0, temperature_S, 1.0)[:, None]
    if sampling.any_top_k or sampling.any_top_p:
        scores_SV = _cut_tail(scores_SV, sampling, rows, peek)
    if sampling.any_typical_p:
        scores_SV = _cut_atypical(scores_SV, sampling.typical_p[rows])
    if sampling.any_min_p:
        floor_S = scores_SV.amax(dim=-1) + sampling.min_p[rows].log()
        scores_SV = scores_SV.masked_fill(scores_SV < floor_S[:, None], float("-inf"))
    return scores_SV


def _draw(logits_NV: Tensor, sampling: SamplingTensors, rows: Tensor | slice, peek: bool) -> Tensor:
    """Ids drawn from the truncated softmax, [S] int64; rows of temperature 0 get their argmax."""
    scores_SV = truncate(logits_NV, sampling, rows, peek=peek)
    gumbel_SV = gumbel_noise(sampling.key[rows], sampling.position[rows], scores_SV.shape[-1])
    hot_S1 = (sampling.temperature[rows] > 0).float()[:, None]
    return scores_SV.addcmul_(gumbel_SV, hot_S1).argmax(dim=-1)


@dataclass(frozen=True, slots=True)
class _Tail:
    """What top_k and top_p leave of S rows."""

    unlimited: Tensor
    """[S, 1] bool: no top_k."""
    top_k: Tensor
    """[S, 1] int64: V where there is none."""
    top_p: Tensor
    """[S, 1]"""
    total: Tensor
    """[S, 1] Mass of all tokens, in units of the best one's."""


def _cut_tail(scores_SV: Tensor, sampling: SamplingTensors, rows: Tensor | slice, peek: bool) -> Tensor:
    """top_k, then top_p (Holtzman et al. 2020) of the k renormalised: scores below the cut become -inf.

    Both reduce to one threshold a row. Tokens that tie with it stay, so nothing depends on the order of a sort.
    """
    vocab_size = scores_SV.shape[-1]
    top_k_S1 = sampling.top_k[rows].long()[:, None]
    unlimited_S1 = (top_k_S1 <= 0) | (top_k_S1 >= vocab_size)
    top_k_S1 = torch.where(unlimited_S1, vocab_size, top_k_S1)
    # Summed in nobody's order, so that it is the same however many candidates are sorted.
    total_S1 = scores_SV.exp().cumsum(dim=-1)[:, -1:]
    tail = _Tail(unlimited_S1, top_k_S1, sampling.top_p[rows][:, None], total_S1)
    width = min(sampling.max_top_k or vocab_size, vocab_size)
    for few in PEEKS if peek else ():
        if few < width:
            threshold_S1, found_S1 = _threshold(scores_SV.topk(few, dim=-1).values, tail)
            if bool(found_S1.all()):
                return scores_SV.masked_fill(scores_SV < threshold_S1, float("-inf"))
    if width < vocab_size:
        sorted_SW = scores_SV.topk(width, dim=-1).values
    else:
        sorted_SW = scores_SV.sort(dim=-1, descending=True).values
    threshold_S1, _ = _threshold(sorted_SW, tail)
    return scores_SV.masked_fill(scores_SV < threshold_S1, float("-inf"))


def _threshold(sorted_SW: Tensor, tail: _Tail) -> tuple[Tensor, Tensor]:
    """The lowest score that stays, [S, 1], and whether the W best candidates were enough to find it, [S, 1].

    Masses are prefix sums, never normalised, so that they are the same, bit for bit, whatever the width W is.
    """
    uncut_S1 = tail.unlimited & (tail.top_p >= 1)
    last_S1 = tail.top_k.clamp(max=sorted_SW.shape[1])
    weights_SW = sorted_SW.exp()
    mass_SW = weights_SW.cumsum(dim=-1)
    wanted_S1 = tail.top_p * torch.where(tail.unlimited, tail.total, mass_SW.gather(1, last_S1 - 1))
    nucleus_S1 = (mass_SW - weights_SW < wanted_S1).sum(dim=-1, keepdim=True).clamp(min=1)
    count_S1 = torch.where(tail.top_p < 1, torch.minimum(nucleus_S1, last_S1), last_S1)
    threshold_S1 = sorted_SW.gather(1, count_S1 - 1).masked_fill(uncut_S1, float("-inf"))
    enough_S1 = torch.where(tail.unlimited, mass_SW[:, -1:] >= wanted_S1, tail.top_k <= sorted_SW.shape[1])
    return threshold_S1, enough_S1 | uncut_S1


def _cut_atypical(scores_SV: Tensor, typical_p_S: Tensor) -> Tensor:
    """Locally typical sampling (Meister et al. 2023): keeps the mass whose surprise is nearest to the entropy."""
    logprobs_SV = scores_SV.log_softmax(dim=-1)
    probabilities_SV = logprobs_SV.exp()
    # A prefix sum, because a plain sum rounds by the shape of the whole tensor.
    entropy_S1 = (-torch.xlogy(probabilities_SV, probabilities_SV)).cumsum(dim=-1)[:, -1:]
    distance_SV = (-logprobs_SV - entropy_S1).abs()
    sorted_SV, order_SV = distance_SV.sort(dim=-1, stable=True)
    mass_SV = probabilities_SV.gather(1, order_SV).cumsum(dim=-1)
    last_S1 = (mass_SV < typical_p_S[:, None]).sum(dim=-1, keepdim=True).clamp(max=scores_SV.shape[-1] - 1)
    atypical_SV = (distance_SV > sorted_SV.gather(1, last_S1)) & (typical_p_S[:, None] < 1)
    return scores_SV.masked_fill(atypical_SV, float("-inf"))


# --- noise -----------------------------------------------------------------------------------------------------------


def _signed(word: int) -> int:
    """The int32 with the bits of an unsigned word."""
    return word - (1 << 32) if word >= 1 << 31 else word


_FULL = 0xFFFFFFFF
_UNIFORM_SCALE = 2.0**-31 * (1 - 2.0**-24)


def seed_key(seed: int) -> int:
    """The int32 that `SamplingTensors.key` holds for a seed, of which the low 64 bits count.

    In Python's integers, because it is asked for one request at a time.
    """
    state = 0
    for word in (seed & _FULL, seed >> 32 & _FULL):
        scrambled = word * 0xCC9E2D51 & _FULL
        scrambled = (scrambled << 15 | scrambled >> 17) & _FULL
        state ^= scrambled * 0x1B873593 & _FULL
        state = (state << 13 | state >> 19) & _FULL
        state = state * 5 + 0xE6546B64 & _FULL
    return _signed(state)


def gumbel_noise(key_S: Tensor, position_S: Tensor, vocab_size: int) -> Tensor:
    """[S, V] float32 standard Gumbel noise of the tokens 0 to V - 1."""
    hash_SV = token_hashes(key_S, position_S, vocab_size)
    uniform_SV = hash_SV.bitwise_and_(0x7FFFFFFF).float().mul_(_UNIFORM_SCALE).add_(2.0**-32)
    return uniform_SV.neg_().log1p_().neg_().log_().neg_()


def token_hashes(key_S: Tensor, word_S: Tensor, vocab_size: int) -> Tensor:
    """[S, V] int32: the hash of two words that `key_S` is the state after, a third, and the tokens 0 to V - 1."""
    state_S = _absorb(key_S, _scramble(word_S))
    tokens_V = torch.arange(vocab_size, dtype=torch.int32, device=key_S.device)
    return _finalise(_absorb(state_S[:, None], _scramble(tokens_V)[None, :]))


def key_state(low_S: Tensor, high: int) -> Tensor:
    """[S] int32: what `seed_key` says of `high << 32 | low`, for numbers that are on the device. `high` < 2**31."""
    state_S = _absorb(torch.zeros_like(low_S), _scramble(low_S))
    return _absorb(state_S, _scramble(torch.full_like(low_S, high)))


def _scramble(word: Tensor) -> Tensor:
    """MurmurHash3_x86_32: what happens to each word of the key."""
    word = word * _signed(0xCC9E2D51)
    word = word << 15 | _shift_right(word, 17)
    return word * 0x1B873593


def _absorb(state: Tensor, scrambled: Tensor) -> Tensor:
    """MurmurHash3_x86_32: the state after one more word."""
    state = state ^ scrambled
    high = state << 13
    return high.bitwise_or_(_shift_right(state, 19)).mul_(5).add_(_signed(0xE6546B64))


def _finalise(state: Tensor) -> Tensor:
    """MurmurHash3_x86_32: the hash of four words, from the state after them. Overwrites its argument."""
    state = state.bitwise_xor_(16)
    state = state.bitwise_xor_(_shift_right(state, 16)).mul_(_signed(0x85EBCA6B))
    state = state.bitwise_xor_(_shift_right(state, 13)).mul_(_signed(0xC2B2AE35))
    return state.bitwise_xor_(_shift_right(state, 16))


def _shift_right(word: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's own is arithmetic, and XLA's divides, which rounds alike where the low bits are gone."""
    return (word & -(1 << bits)).bitwise_right_shift_(bits).bitwise_and_((1 << 32 - bits) - 1)
