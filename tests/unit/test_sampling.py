"""Sampling: against per-row formulas, transformers' warpers and statistics, with fixed seeds throughout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from mainspring.core.execution.sampling import SamplingTable, Selection, adjust
from mainspring.core.ops.choose import not_finite
from mainspring.core.ops.logprobs import logprobs
from mainspring.core.ops.sample import SamplingTensors, gumbel_noise, sample, seed_key, truncate
from mainspring.core.request import SamplingParams

VOCAB = 211
EOS = 5


def select(
    params: Sequence[SamplingParams],
    *,
    prompts: Sequence[int] | None = None,
    partition: bool = True,
    vocab_size: int = VOCAB,
) -> Selection:
    """Row i of the table has params[i], seed i (unless it names one) and prompts[i] prompt tokens."""
    table = SamplingTable(len(params), vocab_size, (EOS,))
    for row, own in enumerate(params):
        table.admit(row, own, row if own.seed is None else own.seed, prompts[row] if prompts else 0)
    return table.select(np.arange(len(params)), torch.from_numpy, partition=partition)


def at(selection: Selection, positions: Sequence[int]) -> SamplingTensors:
    return replace(selection.sampling, position=torch.tensor(positions, dtype=torch.int32))


def random_logits(rows: int, vocab_size: int = VOCAB, *, seed: int = 0, spread: float = 3.0) -> Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


def chi_square(counts: Tensor, expected: Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def limit(freedom: int) -> float:
    """The 99.99 % point of chi-square, by Wilson & Hilferty's approximation."""
    return freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3


# --- noise


def murmur3(words: Sequence[int]) -> int:
    """MurmurHash3_x86_32 of 32-bit words, hash seed 0, in plain integers."""
    full, state = 0xFFFFFFFF, 0
    for word in words:
        word = word * 0xCC9E2D51 & full
        word = (word << 15 | word >> 17) & full
        state ^= word * 0x1B873593 & full
        state = (state << 13 | state >> 19) & full
        state = (state * 5 + 0xE6546B64) & full
    state ^= 4 * len(words)
    state = (state ^ state >> 16) * 0x85EBCA6B & full
    state = (state ^ state >> 13) * 0xC2B2AE35 & full
    return state ^ state >> 16


def noise(seeds: Sequence[int], positions: Sequence[int], vocab_size: int) -> Tensor:
    keys = torch.tensor([seed_key(seed) for seed in seeds], dtype=torch.int32)
    return gumbel_noise(keys, torch.tensor(positions, dtype=torch.int32), vocab_size)


def uniform(seeds: Sequence[int], positions: Sequence[int], vocab_size: int) -> Tensor:
    """The uniform numbers behind the noise."""
    return -torch.expm1(-torch.exp(-noise(seeds, positions, vocab_size)))


def test_the_test_s_own_murmur_knows_the_published_vector() -> None:
    assert murmur3([int.from_bytes(b"test", "little")]) == 0xBA6BD213


@pytest.mark.parametrize("seed", [0, 1, 42, (1 << 32) - 1, 0x0123456789ABCDEF, (1 << 64) - 1])
def test_noise_is_the_documented_hash(seed: int) -> None:
    position, vocab_size = 123_456, 300
    words = [seed & 0xFFFFFFFF, seed >> 32, position]
    hashes = torch.tensor([murmur3([*words, token]) & 0x7FFFFFFF for token in range(vocab_size)], dtype=torch.float64)
    u = hashes * (2.0**-31 * (1 - 2.0**-24)) + 2.0**-32
    found = noise([seed], [position], vocab_size)[0].double()
    torch.testing.assert_close(found, -(-(-u).log1p()).log(), rtol=1e-5, atol=1e-5)


def test_noise_is_uniform() -> None:
    u = uniform(range(16), range(16), 4096).flatten()
    counts = torch.histc(u, bins=128, min=0.0, max=1.0)
    assert chi_square(counts, torch.full_like(counts, u.numel() / 128)) < limit(127)


@pytest.mark.parametrize("shift", ["seed", "seed high word", "position", "token"])
def test_neighbouring_noise_is_independent(shift: str) -> None:
    """Pairs of draws that differ in one coordinate by one fill a 16 x 16 grid evenly."""
    seeds, positions, vocab_size = list(range(100, 116)), list(range(7, 23)), 4097
    a = uniform(seeds, positions, vocab_size)
    step = {"seed": 1, "seed high word": 1 << 32}.get(shift, 0)
    b = uniform([seed + step for seed in seeds], [p + (shift == "position") for p in positions], vocab_size)
    offset = int(shift == "token")
    cells = (a[:, : vocab_size - 1] * 16).long() * 16 + (b[:, offset : vocab_size - 1 + offset] * 16).long()
    counts = torch.bincount(cells.flatten(), minlength=256).double()
    assert chi_square(counts, torch.full_like(counts, cells.numel() / 256)) < limit(255)


def test_noise_is_always_finite() -> None:
    assert noise(range(64), range(64), 65_536).isfinite().all()


# --- choosing


def draws(params: SamplingParams, logits_V: Tensor, count: int) -> Tensor:
    """Tokens at positions 0 to count - 1 of one request whose logits never change."""
    selection = select([params] * count)
    keys = selection.sampling.key[:1].expand(count).contiguous()
    sampling = replace(selection.sampling, key=keys, position=torch.arange(count, dtype=torch.int32))
    return sample(logits_V.expand(count, -1), sampling)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits_V = random_logits(1, 12, spread=1.0)[0]
    count = 20_000
    found = torch.bincount(draws(SamplingParams(temperature=temperature), logits_V, count).long(), minlength=12)
    assert chi_square(found, (logits_V / temperature).softmax(0) * count) < limit(11)


def test_draws_follow_the_truncated_softmax() -> None:
    logits_V = random_logits(1, 50, spread=1.5)[0]
    count = 20_000
    ids = draws(SamplingParams(temperature=0.8, top_k=20, top_p=0.8), logits_V, count)
    found = torch.bincount(ids.long(), minlength=50)
    scores = TopPLogitsWarper(0.8)(None, TopKLogitsWarper(20)(None, logits_V[None] / 0.8))[0]
    kept = scores.isfinite()
    assert found[~kept].sum() == 0
    assert chi_square(found[kept], scores.softmax(0)[kept] * count) < limit(int(kept.sum()) - 1)


def kept(params: Sequence[SamplingParams], logits: Tensor) -> Tensor:
    """[N, V] bool: which tokens each row may draw."""
    return truncate(logits, select(params, vocab_size=logits.shape[1]).sampling, slice(None)).isfinite()


@pytest.mark.parametrize("k", [1, 7, 100, VOCAB, VOCAB + 50])
def test_top_k_as_transformers(k: int) -> None:
    logits = random_logits(8)
    expected = TopKLogitsWarper(k)(None, logits).isfinite()
    assert torch.equal(kept([SamplingParams(temperature=1.0, top_k=k)] * 8, logits), expected)


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p_as_transformers(p: float) -> None:
    logits = random_logits(16)
    expected = TopPLogitsWarper(p)(None, logits).isfinite()
    assert torch.equal(kept([SamplingParams(temperature=1.0, top_p=p)] * 16, logits), expected)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.8, 0.99])
def test_typical_p_as_transformers(p: float) -> None:
    logits = random_logits(16)
    expected = TypicalLogitsWarper(p)(None, logits).isfinite()
    assert torch.equal(kept([SamplingParams(temperature=1.0, typical_p=p)] * 16, logits), expected)


@pytest.mark.parametrize("p", [0.01, 0.2, 1.0])
def test_min_p_as_transformers(p: float) -> None:
    logits = random_logits(16)
    expected = MinPLogitsWarper(p)(None, logits).isfinite()
    assert torch.equal(kept([SamplingParams(temperature=1.0, min_p=p)] * 16, logits), expected)


def test_all_stages_in_their_order_as_transformers_chained() -> None:
    rows = [(0.7, 40, 0.9, 0.8, 0.05), (1.3, 0, 0.95, 1.0, 0.0), (1.0, 5, 1.0, 0.5, 0.0), (2.0, 0, 1.0, 1.0, 0.3)]
    logits = random_logits(4)
    for row, (temperature, k, p, typical, floor) in enumerate(rows):
        scores = logits[row : row + 1] / temperature
        scores = TopKLogitsWarper(k)(None, scores) if k else scores
        scores = TopPLogitsWarper(p)(None, scores) if p < 1 else scores
        scores = TypicalLogitsWarper(typical)(None, scores) if typical < 1 else scores
        scores = MinPLogitsWarper(floor)(None, scores) if floor else scores
        params = [SamplingParams(temperature=t, top_k=a, top_p=b, typical_p=c, min_p=d) for t, a, b, c, d in rows]
        assert torch.equal(kept(params, logits)[row], scores[0].isfinite()), rows[row]


PEEKED = [
    SamplingParams(temperature=0.5, top_p=0.9),
    SamplingParams(temperature=1.0, top_k=40, top_p=0.9),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.0, top_k=600),
    SamplingParams(temperature=9.0, top_p=0.95),
    SamplingParams(temperature=1.0, top_k=3),
]


@pytest.mark.parametrize("rows", [[0], [0, 1, 2, 5], [3], [4], [0, 1, 2, 3, 4, 5]], ids=str)
def test_peeking_at_few_candidates_changes_nothing(rows: list[int]) -> None:
    """Rows 3 and 4 need more candidates than are looked at first."""
    logits = random_logits(6, 4000)
    selection = select([PEEKED[row] for row in rows], vocab_size=4000)
    sampling = at(selection, rows)
    expected = truncate(logits[rows], sampling, slice(None))
    assert torch.equal(truncate(logits[rows], sampling, slice(None), peek=True), expected)
    kept = expected.isfinite().sum(-1).tolist()
    assert [(count > 512) == (row in (2, 3, 4)) for count, row in zip(kept, rows, strict=True)] == [True] * len(rows)


def test_logits_of_sixteen_bits_are_chosen_from_as_their_float32() -> None:
    logits = (3 * torch.randn(4, VOCAB)).bfloat16()
    wishes = [SamplingParams(), SamplingParams(temperature=0.7), SamplingParams(temperature=2.0, top_k=9, top_p=0.8)]
    sampling = select([*wishes, SamplingParams(temperature=1.0, min_p=0.05)]).sampling
    assert torch.equal(sample(logits, sampling), sample(logits.float(), sampling))


def test_ties_at_the_cut_stay() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]])
    assert kept([SamplingParams(temperature=1.0, top_k=2)], logits)[0].tolist() == [1, 0, 1, 1, 1, 0]
    assert kept([SamplingParams(temperature=1.0, top_p=0.6)], logits)[0].tolist() == [1, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-6])
def test_tiny_temperatures_are_greedy(temperature: float) -> None:
    logits = random_logits(8)
    ids = sample(logits, at(select([SamplingParams(temperature=temperature)] * 8), range(8)))
    assert torch.equal(ids.long(), logits.argmax(-1))


MIXED = [
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=11),
    SamplingParams(temperature=0.7, top_k=3, seed=12),
    SamplingParams(temperature=1.2, top_p=0.9, seed=13),
    SamplingParams(temperature=1.0, top_k=50, top_p=0.5, seed=14),
    SamplingParams(temperature=0.9, typical_p=0.6, seed=15),
    SamplingParams(temperature=1.5, min_p=0.1, seed=16),
    SamplingParams(repetition_penalty=1.3, frequency_penalty=0.2),
    SamplingParams(temperature=1.0, presence_penalty=1.0, logit_bias={3: 5.0}, min_tokens=90, seed=17),
]


def chosen(
    params: Sequence[SamplingParams], logits: Tensor, history: Tensor, *, partition: bool, first_seed: int = 0
) -> Tensor:
    """Ids of rows that all have 60 tokens, 20 of them prompt."""
    params = [own if own.seed is not None else _with_seed(own, first_seed + i) for i, own in enumerate(params)]
    selection = select(params, prompts=[20] * len(params), partition=partition)
    position = torch.full((len(params),), 60, dtype=torch.int32)
    adjusted = adjust(logits, selection, history, position, max_length=60)
    return sample(adjusted, replace(selection.sampling, position=position))


def _with_seed(params: SamplingParams, seed: int) -> SamplingParams:
    return SamplingParams(**{name: getattr(params, name) for name in params.__struct_fields__} | {"seed": seed})


@pytest.mark.parametrize("seed", range(5))
def test_a_request_alone_and_in_a_mixed_batch_gets_the_same_token(seed: int) -> None:
    logits = random_logits(len(MIXED), seed=seed)
    history = torch.randint(0, VOCAB, (len(MIXED), 60), generator=torch.Generator().manual_seed(seed)).int()
    together = chosen(MIXED, logits, history, partition=True)
    assert torch.equal(chosen(MIXED, logits, history, partition=False), together)
    for row, params in enumerate(MIXED):
        alone = chosen([params], logits[[row]], history[[row]], partition=True, first_seed=row)
        assert alone[0] == together[row], params


def test_seeds_and_positions_change_draws() -> None:
    logits = torch.zeros(64, 4096)
    by_position = draws(SamplingParams(temperature=1.0), logits[0], 64)
    by_seed = sample(logits, at(select([SamplingParams(temperature=1.0)] * 64, vocab_size=4096), [0] * 64))
    assert len(set(by_position.tolist())) > 55
    assert len(set(by_seed.tolist())) > 55


def test_stages_that_nobody_needs_are_declared_off() -> None:
    sampling = select([SamplingParams(top_k=3, top_p=0.5), SamplingParams()]).sampling
    assert (sampling.any_sampled, sampling.any_top_k, sampling.any_top_p) == (False, False, False)
    sampling = select([SamplingParams(), SamplingParams(temperature=1.0, top_k=9)]).sampling
    assert sampling.sampled is not None
    assert sampling.sampled.tolist() == [1]
    assert (sampling.any_top_k, sampling.any_top_p, sampling.max_top_k) == (True, False, 9)


# --- what happens to logits before


def naive_penalties(logits: list[float], prompt: list[int], output: list[int], params: SamplingParams) -> list[float]:
    scores = list(logits)
    for token in set(prompt + output):
        scores[token] *= params.repetition_penalty if scores[token] < 0 else 1 / params.repetition_penalty
    for token in set(output):
        scores[token] -= params.frequency_penalty * output.count(token) + params.presence_penalty
    return scores


def test_penalties_by_their_formulas() -> None:
    generator = torch.Generator().manual_seed(3)
    params = [
        SamplingParams(repetition_penalty=1.5),
        SamplingParams(),
        SamplingParams(frequency_penalty=0.7),
        SamplingParams(presence_penalty=-1.1),
        SamplingParams(repetition_penalty=0.8, frequency_penalty=-0.3, presence_penalty=0.4),
    ]
    prompts, lengths = [4, 9, 1, 30, 12], [19, 30, 40, 33, 12]
    logits = random_logits(5)
    history = torch.randint(0, 20, (5, 64), generator=generator).int()
    selection = select(params, prompts=prompts)
    found = adjust(logits, selection, history, torch.tensor(lengths, dtype=torch.int32), max_length=40)
    for row, own in enumerate(params):
        tokens = history[row].tolist()
        expected = naive_penalties(
            logits[row].tolist(), tokens[: prompts[row]], tokens[prompts[row] : lengths[row]], own
        )
        torch.testing.assert_close(found[row], torch.tensor(expected), msg=str(own))


def test_repetition_penalty_as_transformers() -> None:
    logits = random_logits(3)
    history = torch.randint(0, VOCAB, (3, 25), generator=torch.Generator().manual_seed(5)).int()
    selection = select([SamplingParams(repetition_penalty=1.2)] * 3, prompts=[10] * 3)
    found = adjust(logits, selection, history, torch.full((3,), 25, dtype=torch.int32), max_length=25)
    torch.testing.assert_close(found, RepetitionPenaltyLogitsProcessor(1.2)(history.long(), logits.clone()))


def test_logit_bias_adds_and_ignores_ids_outside_the_vocabulary() -> None:
    logits = random_logits(2)
    selection = select([SamplingParams(logit_bias={7: 2.5, 0: -100.0, VOCAB: 9.0, -1: 9.0}), SamplingParams()])
    found = adjust(logits, selection, torch.zeros(2, 4).int(), torch.zeros(2).int(), max_length=4)
    expected = logits.clone()
    expected[0, 7] += 2.5
    expected[0, 0] -= 100.0
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(("generated", "banned"), [(0, True), (2, True), (3, False), (9, False)])
def test_min_tokens_rules_out_every_end(generated: int, banned: bool) -> None:
    params = [
        SamplingParams(min_tokens=3, stop_token_ids=(8, EOS, VOCAB + 1)),
        SamplingParams(min_tokens=3, ignore_eos=True, stop_token_ids=(9,)),
        SamplingParams(),
    ]
    selection = select(params, prompts=[6, 6, 6])
    position = torch.full((3,), 6 + generated, dtype=torch.int32)
    found = adjust(torch.zeros(3, VOCAB), selection, torch.zeros(3, 4).int(), position, max_length=4).isneginf()
    assert found[0].nonzero().flatten().tolist() == ([EOS, 8] if banned else [])
    assert found[1].nonzero().flatten().tolist() == ([9] if banned else [])
    assert not found[2].any()


def test_adjusting_leaves_the_raw_logits_alone() -> None:
    logits = random_logits(len(MIXED))
    before = logits.clone()
    chosen(MIXED, logits, torch.zeros(len(MIXED), 60).int(), partition=True)
    assert torch.equal(logits, before)


# --- rows that are not finite


def test_not_finite_names_rows_with_nan_or_infinity_or_nothing() -> None:
    inf, nan = math.inf, math.nan
    logits = torch.tensor([[1.0, 2.0], [nan, 2.0], [-inf, -inf], [inf, 0.0], [-inf, 3.0], [-inf, nan]])
    assert not_finite(logits).tolist() == [False, True, True, True, False, True]


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("partition", [True, False])
def test_a_bad_row_gets_a_valid_token_and_touches_no_other(poison: float, partition: bool) -> None:
    logits = random_logits(len(MIXED))
    history = torch.randint(0, VOCAB, (len(MIXED), 60), generator=torch.Generator().manual_seed(1)).int()
    clean = chosen(MIXED, logits, history, partition=partition)
    for victim in range(len(MIXED)):
        poisoned = logits.clone()
        poisoned[victim] = poison
        found = chosen(MIXED, poisoned, history, partition=partition)
        assert 0 <= found[victim] < VOCAB
        others = torch.arange(len(MIXED)) != victim
        assert torch.equal(found[others], clean[others])


# --- log-probabilities


@pytest.mark.parametrize("k", [0, 1, 5])
def test_logprobs_of_the_raw_distribution(k: int) -> None:
    logits, ids = random_logits(6), torch.arange(6, dtype=torch.int32)
    own, top_ids, top = logprobs(logits, ids, k)
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(own, expected[torch.arange(6), ids.long()])
    torch.testing.assert_close(top, expected.sort(-1, descending=True).values[:, :k])
    assert torch.equal(top_ids.long(), expected.topk(k).indices)


def test_only_rows_that_asked_get_logprobs() -> None:
    params = [SamplingParams(), SamplingParams(logprobs=0), SamplingParams(logprobs=5), SamplingParams()]
    selection = select(params)
    assert (selection.logprob_rows, selection.logprob_counts, selection.max_logprobs) == ((1, 2), (0, 5), 8)
    assert select(params[:1]).logprob_index is None


@pytest.mark.parametrize("k", [2, 3, 4])
def test_ties_come_in_the_order_of_their_ids(k: int) -> None:
    logits = torch.zeros(3, 4000)
    logits[:, [3999, 17, 1234, 900]] = torch.tensor([2.0, 2.0, 2.0, 5.0])
    own, top_ids, top = logprobs(logits, torch.tensor([17, 900, 5]), k)
    assert top_ids[0, 0] == 900
    assert all(ids == sorted(ids) for ids in top_ids[:, 1:].tolist())
    assert set(top_ids[:, 1:].flatten().tolist()) <= {17, 1234, 3999}
    assert own[1] == top[1, 0]
    assert own[0] == top[0, 1]
