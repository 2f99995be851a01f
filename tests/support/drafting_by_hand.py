"""A target and a drafter behind it, stepped by hand: a step computes a row's last token and its drafts, and chooses
after each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from mainspring.core.architectures.speculators import read_speculator
from mainspring.core.backend import Device, KVCache, KVSpec
from mainspring.core.batch import Admission, Batch
from mainspring.core.config import EngineConfig, ModelConfig
from mainspring.core.execution.drafters.contract import Drafter, Ran
from mainspring.core.execution.drafters.loading import Room, Surroundings, build_drafter, load_module, tapped
from mainspring.core.execution.inputs import exact_shape, fill, view
from mainspring.core.execution.sampling import SamplingTable
from mainspring.core.execution.table import StateTable
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.models import CausalLM
from mainspring.core.ops import resolve
from mainspring.core.request import SamplingParams
from mainspring.core.speculator_plan import plan_speculator
from tests.support.plain_device import PlainDevice

ROWS, NUM_BLOCKS = 4, 60


def upload(array: np.ndarray) -> torch.Tensor:  # type: ignore[type-arg]
    return torch.from_numpy(np.ascontiguousarray(array))


@dataclass
class Written:
    """One sequence: what is known of it, and what was guessed."""

    row: int
    tokens: list[int]
    blocks: list[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    seed: int = 0
    computed: int = 0
    admitted: bool = False
    drafts: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    """How many drafts were right, a step that had some."""


class DraftingByHand:
    """The target's half of every step; the drafter's comes behind it."""

    def __init__(
        self, target: CausalLM, config: ModelConfig, max_length: int, device: Device | None = None, block_size: int = 4
    ) -> None:
        self.target, self.config, self.device = target, config, device or PlainDevice()
        self.ops, self.block_size = resolve(self.device.ops()), block_size
        sampling = SamplingTable(ROWS + 1, config.vocab_size, ())
        self.table = StateTable(ROWS, max_length, block_size, sampling=sampling, torch_device="cpu")
        spec = KVSpec(config.num_layers, config.num_kv_heads, config.head_dim, "float32", block_size)
        self.kv = self.cache(spec, NUM_BLOCKS)
        self.drafter: Drafter | None = None

    def cache(self, spec: KVSpec, num_blocks: int) -> KVCache:
        """Full of NaN where the device can do that, so that a stray read shows."""
        kv = self.device.allocate_kv(spec, num_blocks)
        if isinstance(self.device, PlainDevice):
            self.device.poison(range(num_blocks))
        return kv

    def draft_with(self, path: Path, count: int, *, max_tokens: int = 1000) -> None:
        """Puts the speculator at a path behind the target, its cache full of NaN."""
        config = EngineConfig(model="", speculator=str(path), speculate=count, max_sequences=ROWS)
        spec = KVSpec(0, 0, 0, "float32", self.block_size)
        plan = plan_speculator(config, read_speculator(path, self.config), spec, "float32")
        assert plan is not None
        around = Surroundings(self.device, self.ops, torch.float32, self.table.max_length)
        module = load_module(plan, self.target, around, lambda phase, done, total: None)
        self.target = tapped(self.target, plan, self.config.hidden_size)
        kv = None if plan.kv is None else self.cache(plan.kv, NUM_BLOCKS + plan.scratch_blocks)
        self.drafter = build_drafter(module, plan, around, Room(self.table, NUM_BLOCKS, kv, None, max_tokens))

    @torch.inference_mode()
    def step(self, rows: Sequence[tuple[Written, int]], *, wanting: bool = True) -> list[list[int]]:
        """Computes `count` tokens of each row, or its last one and its drafts; gives the drafts that come of it.

        Rows that are still in their prompts choose nothing and want nothing.
        """
        batch = Batch(0)
        for sequence, count in rows:
            if not sequence.admitted:
                admission = Admission(
                    sequence.row, sequence.tokens, len(sequence.tokens), sequence.params, sequence.seed, sequence.blocks
                )
                batch.admissions.append(admission)
                sequence.admitted = True
            batch.rows.append(sequence.row)
            batch.starts.append(sequence.computed)
            batch.counts.append(count + len(sequence.drafts))
            batch.samples.append(sequence.computed + count == len(sequence.tokens))
        batch.num_tokens = sum(batch.counts)
        self.table.update(batch)
        self.table.write_tokens(batch.admissions, upload)
        for sequence, _ in rows:
            known = len(sequence.tokens)
            self.table.tokens[sequence.row, known : known + len(sequence.drafts)] = torch.tensor(
                sequence.drafts, dtype=torch.int32
            )
        choosing = [place for place, samples in enumerate(batch.samples) if samples]
        wanted = choosing if wanting else []
        plan = None if self.drafter is None else self.drafter.plan(batch, wanted)

        shape = exact_shape(batch, self.block_size)
        words = np.zeros(shape.words, dtype=np.int32)
        fill(words, batch, self.table, shape)
        inputs = view(upload(words), shape)
        tokens_T = self.table.tokens[inputs.token_rows, inputs.positions]
        step = AttentionStep(self.kv, self.device.prepare_attention(inputs.metadata, self.kv))
        hidden = self.target(tokens_T, inputs.positions, step)
        last: dict[int, int] = {}
        for place in choosing:
            sequence = rows[place][0]
            past = int(inputs.metadata.query_start[place + 1])
            span = range(past - 1 - len(sequence.drafts), past)
            last[place] = span.start + self._choose(sequence, hidden[span.start : past])
        for (sequence, count), samples in zip(rows, batch.samples, strict=True):
            sequence.computed = len(sequence.tokens) - 1 if samples else sequence.computed + count
            sequence.drafts = []
        if self.drafter is None or plan is None:
            return []
        ran = Ran(inputs, hidden, torch.tensor([last[place] for place in plan.places], dtype=torch.int64))
        drafts = self.drafter.draft(plan, ran)
        if drafts is None:
            return []
        for place, ids in zip(plan.places, drafts.tolist(), strict=True):
            rows[place][0].drafts = ids
        return drafts.tolist()

    def _choose(self, sequence: Written, hidden: torch.Tensor) -> int:
        """Chooses after each token of the span; returns how many of the drafts were right."""
        known, count = len(sequence.tokens), len(hidden)
        positions = torch.arange(known, known + count, dtype=torch.int32)
        sampling = self.table.sampling.drawn(np.full(count, sequence.row), upload)
        logits = self.target.logits(hidden)
        chosen = self.ops.sample(logits, replace(sampling, position=positions))
        self.table.append(torch.full((count,), sequence.row), positions.long(), chosen)
        right = 0
        while right < len(sequence.drafts) and sequence.drafts[right] == chosen[right]:
            right += 1
        if sequence.drafts:
            sequence.accepted.append(right)
        sequence.tokens += chosen[: right + 1].tolist()
        return right
