"""KV blocks: who holds them and what they contain. Integers only."""

from __future__ import annotations


class BlockPool:
    """Reference-counted blocks 1 to num_blocks-1; block 0 belongs to nobody."""

    def __init__(
        self, num_blocks: int, block_size: int, *, prefix_caching: bool = True, hash_key: bytes | None = None
    ) -> None:
        raise NotImplementedError
