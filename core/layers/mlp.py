"""Feed-forward layers.

Legend: T packed tokens, E hidden size, I intermediate size.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mainspring.core.layers.linear import Linear


class GatedMLP(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020); `activation` takes gate and up side by side, [T, 2I] -> [T, I]."""

    def __init__(self, gate_up_proj: Linear, down_proj: Linear, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = gate_up_proj, down_proj
        self._activation = activation

    def forward(self, x_TE: Tensor) -> Tensor:
        """[T, E] -> [T, E]."""
        out_TE: Tensor = self.down_proj(self._activation(self.gate_up_proj(x_TE)))
        return out_TE
