"""The language of the simulated model: every token is a hash of all tokens before it.

A state is a 64-bit number that stands for a prefix. `extend` takes a prefix's state to that of the prefix and one more
token; it is what the simulated cache stores for a position, as a real one stores keys and values there. `draw` makes
the next token of a state. Both are a multiplication and a shift or two (after SplitMix64, Steele et al. 2014).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import islice

from mainspring.core.request import SamplingParams, TokenLogprobs

_MASK = (1 << 64) - 1
EMPTY = 0x9E3779B97F4A7C15
"""The state of no tokens."""
SPOILT = -1
"""What the cache holds where keys and values were not finite; equal to no state."""

EOS_BITS = 24
_FORCED_BIAS = 100.0
_MAX_REDRAWS = 64


def extend(state: int, token: int) -> int:
    """The state of a prefix and one more token."""
    mixed = ((state ^ token) * 0xBF58476D1CE4E5B9 + 0x2545F4914F6CDD1D) & _MASK
    return mixed ^ (mixed >> 29)


def scramble(state: int, salt: int) -> int:
    """64 even bits from a state."""
    mixed = ((state ^ (state >> 30) ^ salt) * 0x94D049BB133111EB) & _MASK
    return mixed ^ (mixed >> 31)


def salt_of(params: SamplingParams, seed: int) -> int:
    """What sampling adds to the draw: nothing for a greedy request, its seed for any other."""
    return 0 if params.temperature == 0 else extend(EMPTY, (seed + 1) & _MASK)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens that come out: `first` up to `last`, and with a probability the end of the sequence."""

    size: int
    first: int
    last: int
    """One past the last. At least one token of the range is no end of sequence."""
    eos_token_ids: tuple[int, ...] = ()
    eos_threshold: int = 0
    """The probability of an end of sequence at each position, times 2 ** `EOS_BITS`."""

    def draw(self, state: int, salt: int, *, may_end: bool) -> int:
        """The next token."""
        bits = scramble(state, salt)
        if (bits >> (64 - EOS_BITS)) < self.eos_threshold and may_end and self.eos_token_ids:
            return self.eos_token_ids[0]
        token = self.first + bits % (self.last - self.first)
        # The end of a sequence comes by its own probability, not by the way.
        while token in self.eos_token_ids:
            token = token + 1 if token + 1 < self.last else self.first
        return token

    def draw_allowed(self, state: int, salt: int, params: SamplingParams, *, generated: int) -> int:
        """The next token of a request with rules of its own: a bias of 100 forces a token, one of -100 bans it."""
        if params.logit_bias:
            forced = max(params.logit_bias, key=lambda token: params.logit_bias[token])
            if params.logit_bias[forced] >= _FORCED_BIAS:
                return forced
        early = generated < params.min_tokens
        token = 0
        for turn in range(_MAX_REDRAWS):
            token = self.draw(state, salt ^ turn, may_end=not early and not params.ignore_eos)
            banned = params.logit_bias.get(token, 0.0) <= -_FORCED_BIAS
            if not banned and not (early and token in params.stop_token_ids):
                break
        return token

    def draw_masked(self, state: int, salt: int, mask: bytes) -> int:
        """The next token of those whose bit in `mask` is set, little end first; an end where one may come."""
        for token in self.eos_token_ids:
            if mask[token // 8] >> token % 8 & 1:
                return token
        first = scramble(state, salt) % self.size
        for token in (*range(first, self.size), *range(first)):
            if mask[token // 8] >> token % 8 & 1:
                return token
        return first

    def logprobs(self, state: int, token: int, count: int) -> TokenLogprobs:
        """Of a token that was chosen: it has at least one half, and is the likeliest."""
        return self._logprobs(state, token, token, count)

    def score(self, state: int, token: int, count: int) -> TokenLogprobs:
        """Of a token that a prompt gives: the likeliest is what a greedy request would draw."""
        return self._logprobs(state, self.draw(state, 0, may_end=True), token, count)

    def _logprobs(self, state: int, likeliest: int, token: int, count: int) -> TokenLogprobs:
        """The likeliest token has at least one half, those from a random one on each half of the one before."""
        probability = 0.5 + (scramble(state, 1) >> 12) / (1 << 54)
        first = scramble(state, 2) % self.size
        others = (other for step in range(self.size) if (other := (first + step) % self.size) != likeliest)
        ids = [likeliest, *islice(others, max(0, count - 1))]
        # In logarithms, because a token far behind has too small a probability for a float.
        rest, half = math.log(1 - probability), math.log(0.5)
        logprobs = [math.log(probability), *(rest + half * place for place in range(1, len(ids)))]
        if token == likeliest:
            return TokenLogprobs(logprobs[0], ids[:count], logprobs[:count])
        behind, skipped = (token - first) % self.size, (likeliest - first) % self.size
        place = behind + (1 if behind < skipped else 0)
        return TokenLogprobs(rest + half * place, ids[:count], logprobs[:count])
