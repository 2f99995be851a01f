"""A mixture of experts in a block's second half, in place of one MLP.

Legend: T packed tokens, E hidden size, I intermediate size of an expert, X experts, C of them chosen for a token.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mainspring.core.backend import Communicator
from mainspring.core.config import ExpertsConfig
from mainspring.core.layers.linear import Linear
from mainspring.core.layers.weights import Cut, Packing, Read, Shape, WeightLayer, declared
from mainspring.core.ops import Ops
from mainspring.core.parallel.shard import Shard


class Experts(WeightLayer):
    """The experts of a layer as two tensors. Where ranks share a model each holds some features of every expert,
    or all features of some experts, which then have all tokens; the others' choices weigh nothing here.

    Without a `group` the sum over ranks is left to the norm behind.
    """

    def __init__(
        self, config: ExpertsConfig, hidden_size: int, ops: Ops, *, shard: Shard, group: Communicator | None
    ) -> None:
        super().__init__()
        self._features, self._span = config.size, shard.expert_features(config.size)
        self._count, self._experts = config.count, shard.experts(config.count)
        held = self._span[1] - self._span[0]
        self.gate_up = declared(self._experts[1] - self._experts[0], 2 * held, hidden_size)
        self.down = declared(self._experts[1] - self._experts[0], hidden_size, held)
        self._moe, self._group = ops.moe, group

    def forward(self, x_TE: Tensor, weights_TC: Tensor, experts_TC: Tensor) -> Tensor:
        """[T, E] -> [T, E]."""
        if self._experts != (0, self._count):
            weights_TC, experts_TC = self._held(weights_TC, experts_TC)
        part_TE = self._moe(x_TE, self.gate_up, self.down, weights_TC, experts_TC)
        return part_TE if self._group is None else self._group.all_reduce(part_TE)

    def sources(self, path: str) -> Mapping[str, Shape]:
        """One linear layer after the other, as checkpoints hold them."""
        hidden_size = self.gate_up.shape[2]
        inward, outward = (self._features, hidden_size), (hidden_size, self._features)
        kinds = {"gate_proj": inward, "up_proj": inward, "down_proj": outward}
        return {f"{path}.{index}.{kind}.weight": shape for index in range(self._count) for kind, shape in kinds.items()}

    def fill(self, path: str, read: Read, packing: Packing) -> None:
        """Expert by expert, so that no more than one is held twice."""
        held = self.down.shape[2]
        rows, columns = Cut(rows=(self._span,)), Cut(columns=self._span)
        gate_up, down = (
            torch.empty(whole.shape, dtype=packing.dtype, device=packing.device.torch_device)
            for whole in (self.gate_up, self.down)
        )
        for place, index in enumerate(range(*self._experts)):
            gate_up[place, :held] = packing.place(read(f"{path}.{index}.gate_proj.weight", rows))
            gate_up[place, held:] = packing.place(read(f"{path}.{index}.up_proj.weight", rows))
            down[place] = packing.place(read(f"{path}.{index}.down_proj.weight", columns))
        self.gate_up, self.down = (nn.Parameter(x, requires_grad=False) for x in (gate_up, down))

    def _held(self, weights_TC: Tensor, experts_TC: Tensor) -> tuple[Tensor, Tensor]:
        """Choices by their places here; those of others' experts go to any place, without weight."""
        first, past = self._experts
        is_held_TC = (experts_TC >= first) & (experts_TC < past)
        return torch.where(is_held_TC, weights_TC, 0.0), experts_TC % (past - first)


class SparseMLP(nn.Module):
    """A router, which is on every rank whole, and its experts."""

    def __init__(self, config: ExpertsConfig, gate: Linear, experts: Experts, ops: Ops) -> None:
        super().__init__()
        self._route = ops.route
        self.gate, self.experts = gate, experts
        self._chosen, self._normalized = config.chosen, config.normalized

    def forward(self, x_TE: Tensor) -> Tensor:
        """[T, E] -> [T, E]."""
        weights_TC, experts_TC = self._route(self.gate(x_TE), self._chosen, self._normalized)
        out_TE: Tensor = self.experts(x_TE, weights_TC, experts_TC)
        return out_TE
