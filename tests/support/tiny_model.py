"""A decoder of two layers with random weights, over the paged cache: small enough to check an executor by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from mainspring.core.backend import AttentionMetadata, KVSpec
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.models.causal import CausalLM
from mainspring.core.ops import Ops
from mainspring.core.ops.attention import PagedKV

VOCAB = 97
HEADS, KV_HEADS, HEAD_DIM = 3, 1, 8
HIDDEN = HEADS * HEAD_DIM
LAYERS = 2

NAN_TOKEN = 96
"""A prompt that holds it has logits of NaN, from there on."""
GREEDY_TOKEN = 95
"""A prompt that holds it asks for more memory than any machine has."""


def spec(block_size: int = 4) -> KVSpec:
    return KVSpec(layers=LAYERS, heads=KV_HEADS, head_dim=HEAD_DIM, dtype="float32", block_size=block_size)


class TinyModel(CausalLM):
    """Embeddings of token and position, two attention layers, tied head. Logits are spread so that argmax is clear."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.steps: list[tuple[int, int]] = []
        """(tokens, rows of logits) of each forward."""

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator) / shape[-1] ** 0.5

        self.embedding_VE = random(VOCAB, HIDDEN) * 4
        self.embedding_VE[NAN_TOKEN] = float("nan")
        self.position_PE = random(512, HIDDEN)
        self.qkv = [random(HIDDEN + 2 * KV_HEADS * HEAD_DIM, HIDDEN) for _ in range(LAYERS)]
        self.out = [random(HIDDEN, HIDDEN) for _ in range(LAYERS)]
        self.head_VE = random(VOCAB, HIDDEN) * 4
        self.ops = Ops()

    def forward(self, tokens_T: Tensor, positions_T: Tensor, step: AttentionStep) -> Tensor:
        self.steps.append((len(tokens_T), -1))
        if (tokens_T == GREEDY_TOKEN).any():
            torch.empty(1 << 50, dtype=torch.uint8)
        x_TE = self.embedding_VE[tokens_T] + self.position_PE[positions_T]
        for layer in range(LAYERS):
            q, k, v = (x_TE @ self.qkv[layer].T).split((HIDDEN, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM), dim=-1)
            attended_THD = self.ops.attention(
                q.unflatten(-1, (HEADS, HEAD_DIM)),
                k.unflatten(-1, (KV_HEADS, HEAD_DIM)),
                v.unflatten(-1, (KV_HEADS, HEAD_DIM)),
                step.kv,
                layer,
                step.plan,
                scale=HEAD_DIM**-0.5,
            )
            x_TE = torch.tanh(x_TE + attended_THD.flatten(1) @ self.out[layer].T)
        return x_TE

    def logits(self, hidden_NE: Tensor) -> Tensor:
        self.steps[-1] = (self.steps[-1][0], len(hidden_NE))
        # The head never proposes the two tokens that break things.
        logits_NV = hidden_NE @ self.head_VE.T
        logits_NV[:, GREEDY_TOKEN:] = torch.where(logits_NV[:, :1].isnan(), logits_NV[:, :1], -50.0)
        return logits_NV


def all_logits(tokens: list[int], block_size: int) -> Tensor:
    """[T, V] behind each of the tokens, in one pass without an executor."""
    length, model = len(tokens), TinyModel()
    metadata = AttentionMetadata(
        query_start=torch.tensor([0, length]),
        kv_length=torch.tensor([length]),
        block_table=torch.arange(1, 20)[None],
        slot=torch.arange(length) + block_size,
        max_query=length,
        max_kv=length,
        num_decodes=0,
    )
    kv = PagedKV.allocate(spec(block_size), 20, "cpu")
    return model.logits(model.forward(torch.tensor(tokens), torch.arange(length), AttentionStep(kv, metadata)))
