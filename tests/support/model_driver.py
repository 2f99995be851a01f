"""Drives a model without an engine: sequences with block tables of their own, and any mix of them in one step."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from mainspring.core.backend import AttentionMetadata, KVSpec
from mainspring.core.config import ModelConfig
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.models import CausalLM
from tests.support.reference_device import ReferenceDevice


@dataclass(slots=True)
class Track:
    """One sequence: its tokens, its blocks, and how many of the tokens are in the cache."""

    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    done: int = 0


class ModelDriver:
    """A paged cache whose blocks are handed out in shuffled order and start as NaN, so that a stray read shows."""

    def __init__(self, model: CausalLM, config: ModelConfig, block_size: int = 4, num_blocks: int = 96) -> None:
        self.model, self.block_size = model, block_size
        spec = KVSpec(config.num_layers, config.num_kv_heads, config.head_dim, "float32", block_size)
        self.kv = ReferenceDevice().allocate_kv(spec, num_blocks)
        for cache in self.kv.keys + self.kv.values:
            cache.fill_(float("nan"))
        self._free = list(range(1, num_blocks))
        random.Random(7).shuffle(self._free)

    def share(self, source: Track, tokens: list[int], num_blocks: int) -> Track:
        """A new sequence whose first blocks are those of another one."""
        return Track(tokens, source.blocks[:num_blocks], num_blocks * self.block_size)

    @torch.inference_mode()
    def step(self, rows: list[tuple[Track, int]]) -> list[Tensor]:
        """Computes the next `count` tokens of each row, decodes first; returns each row's logits [count, V]."""
        counts = [count for _, count in rows]
        metadata = self._metadata(rows, counts)
        tokens = [token for track, count in rows for token in track.tokens[track.done : track.done + count]]
        positions = [position for track, count in rows for position in range(track.done, track.done + count)]
        for track, count in rows:
            track.done += count
        hidden_TE = self.model(torch.tensor(tokens), torch.tensor(positions), AttentionStep(self.kv, metadata))
        return list(self.model.logits(hidden_TE).split(counts))

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """The likeliest `count` tokens after the prompt, one step each."""
        track = Track(list(prompt))
        pending = len(prompt)
        for _ in range(count):
            (logits,) = self.step([(track, pending)])
            track.tokens.append(int(logits[-1].argmax()))
            pending = 1
        return track.tokens[len(prompt) :]

    def _metadata(self, rows: list[tuple[Track, int]], counts: list[int]) -> AttentionMetadata:
        slots = []
        for track, count in rows:
            while len(track.blocks) * self.block_size < track.done + count:
                track.blocks.append(self._free.pop())
            slots += [
                track.blocks[position // self.block_size] * self.block_size + position % self.block_size
                for position in range(track.done, track.done + count)
            ]
        lengths = [track.done + count for track, count in rows]
        width = max(len(track.blocks) for track, _ in rows)
        table = [track.blocks + [0] * (width - len(track.blocks)) for track, _ in rows]
        return AttentionMetadata(
            query_start=torch.tensor([0, *accumulate(counts)], dtype=torch.int32),
            kv_length=torch.tensor(lengths, dtype=torch.int32),
            block_table=torch.tensor(table, dtype=torch.int32),
            slot=torch.tensor(slots, dtype=torch.int64),
            max_query=max(counts),
            max_kv=max(lengths),
            num_decodes=sum(count == 1 for count in counts),
        )
