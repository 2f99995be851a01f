"""The two ends of a model: token embeddings, and the head that turns hidden states into scores over the vocabulary.

Legend: T packed tokens, N rows to score, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mainspring.core.backend import PackedLinear
from mainspring.core.layers.linear import Matmul
from mainspring.core.layers.vocabulary import Vocabulary
from mainspring.core.layers.weights import Packing, Read, Shape, Stored, WeightLayer, declared
from mainspring.core.ops import Ops

ReadRows = Callable[[Tensor, PackedLinear, torch.dtype], Tensor]
"""`Device.rows`."""


class Embedding(WeightLayer):
    """Rows of a table, which stays quantized where the checkpoint has it so and the device reads such rows."""

    packed: PackedLinear | None = None
    """The table in the backend's form, where it is quantized; `weight` then only declares its shape."""

    def __init__(self, rows: Vocabulary, size: int, ops: Ops, read_rows: ReadRows) -> None:
        super().__init__()
        self.rows = rows
        self.weight = declared(rows.held, size)
        self._embedding = ops.embedding
        self._read_rows = read_rows
        self._dtype = torch.float32

    def forward(self, index_T: Tensor) -> Tensor:
        """[T] -> [T, E]."""
        index_T, here_T1 = self.rows.own(index_T)
        return self.rows.summed(self._looked_up(index_T), here_T1)

    def begin(self, index_T: Tensor) -> tuple[Tensor, Tensor]:
        """(what the first block is to add, the stream before that), [T, E] each."""
        x_TE = self(index_T)
        return x_TE, torch.zeros_like(x_TE)

    def _looked_up(self, index_T: Tensor) -> Tensor:
        if self.packed is None:
            return self._embedding(index_T, self.weight)
        return self._read_rows(index_T, self.packed, self._dtype)

    def sources(self, path: str) -> Mapping[str, Shape]:
        return {f"{path}.weight": (self.rows.size, self.weight.shape[1])}

    def fill(self, path: str, read: Read, packing: Packing) -> None:
        self._dtype = packing.dtype
        stored = packing.stored(f"{path}.weight", self.rows.cut, "rows")
        if stored is not None:
            self.packed = packing.pack(stored.scheme, self._filled_up(stored.tensors))
            return
        table = self.rows.filled_up(packing.place(read(f"{path}.weight", self.rows.cut)))
        self.weight = nn.Parameter(table, requires_grad=False)

    def _filled_up(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.rows.filled_up(tensor) for name, tensor in tensors.items()}


class ScaledEmbedding(Embedding):
    """Rows of a table times a factor, which is rounded to the compute dtype as it was in training (Gemma)."""

    def __init__(self, rows: Vocabulary, size: int, ops: Ops, read_rows: ReadRows, *, scale: float) -> None:
        super().__init__(rows, size, ops, read_rows)
        self.scale = scale

    def forward(self, index_T: Tensor) -> Tensor:
        """[T] -> [T, E]."""
        return super().forward(index_T) * self.scale

    def fill(self, path: str, read: Read, packing: Packing) -> None:
        super().fill(path, read, packing)
        self.scale = torch.tensor(self.scale, dtype=packing.dtype).item()


class Head(WeightLayer):
    """Hidden states to scores, [N, E] -> [N, V] in the model's dtype, with weights of its own."""

    packed: PackedLinear
    """Set by `fill`."""

    def __init__(self, rows: Vocabulary, size: int, matmul: Matmul) -> None:
        super().__init__()
        self._rows = rows
        self.weight = declared(rows.held, size)
        self._matmul = matmul

    def forward(self, hidden_NE: Tensor) -> Tensor:
        """[N, E] -> [N, V]."""
        return self._rows.gathered(self._matmul(hidden_NE, self.packed))

    def sources(self, path: str) -> Mapping[str, Shape]:
        return {f"{path}.weight": (self._rows.size, self.weight.shape[1])}

    def fill(self, path: str, read: Read, packing: Packing) -> None:
        name = f"{path}.weight"
        stored = packing.stored(name, self._rows.cut, "product")
        stored = stored or Stored(packing.head, {"weight": read(name, self._rows.cut)})
        tensors = {kind: self._rows.filled_up(tensor) for kind, tensor in stored.tensors.items()}
        self.packed = packing.pack(stored.scheme, tensors)


class TiedHead(WeightLayer):
    """A head that shares the embedding's table. It must come after the embedding in the model."""

    packed: PackedLinear
    """Set by `fill`."""

    def __init__(self, embedding: Embedding, matmul: Matmul) -> None:
        super().__init__()
        # In a tuple, so that torch does not take the embedding for a child of this module too.
        self._embedding = (embedding,)
        self._rows = embedding.rows
        self._matmul = matmul

    def forward(self, hidden_NE: Tensor) -> Tensor:
        """[N, E] -> [N, V]."""
        return self._rows.gathered(self._matmul(hidden_NE, self.packed))

    def sources(self, path: str) -> Mapping[str, Shape]:
        return {}

    def fill(self, path: str, read: Read, packing: Packing) -> None:
        (embedding,) = self._embedding
        self.packed = embedding.packed or packing.pack(packing.head, {"weight": embedding.weight})


def softcapped(scores_NV: Tensor, cap: float | None) -> Tensor:
    """Scores squeezed into (-cap, cap) by tanh, in float32; as they are without a cap (Gemma)."""
    return scores_NV if cap is None else cap * torch.tanh(scores_NV.float() / cap)
