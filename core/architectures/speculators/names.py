"""What tensors of heads are called, and the modules' names for them: patterns and replacements, in order."""

from __future__ import annotations

import re
from collections.abc import Sequence

Renaming = Sequence[tuple[str, str]]

MEDUSA: Renaming = (
    (r"^medusa_heads?\.", ""),
    # vLLM names heads and layers; the authors and TGI number them, the output projection being the last layer.
    (r"^blocks\.(\d+)\.layers\.(\d+)\.", r"\1.\2.linear."),
    (r"^lm_heads\.(\d+)\.", r"heads.\1.scores."),
    (r"^(\d+)\.\d+\.weight$", r"heads.\1.scores.weight"),
    (r"^(\d+)\.(\d+)\.linear\.", r"heads.\1.blocks.\2.linear."),
)

MLP: Renaming = ((r"^speculator\.", ""),)

EAGLE: Renaming = ((r"^model\.", ""), (r"^layers\.0\.", "midlayer."))
"""EAGLE calls its one layer `layers.0`, EAGLE-3 `midlayer`."""

EAGLE_IGNORED = (r"^t2d$", r"rotary_emb\.inv_freq$")
"""`t2d` marks the tokens that `d2t` lists."""


def renamed(name: str, renaming: Renaming) -> str:
    """The module's name for a tensor."""
    for pattern, replacement in renaming:
        name = re.sub(pattern, replacement, name)
    return name
