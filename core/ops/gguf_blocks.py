_SPLITS: Mapping[GGUFPacking, Callable[[Tensor], Split]] = MappingProxyType({
    "q4_0": _q4_0, "q4_1": _q4_1, "q8_0": _q8_0, "q4_k": _q4_k, "q5_k": _q5_k, "q6_k": _q6_k,
})  # fmt: skip


def _six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight steps and eight minimum steps of 6 bits out of 12 bytes."""
    first, second, third = _apart(packed, 3, 4).unbind(-2)
    steps = torch.cat((first & 63, (third & 0xF) | ((first >> 6) << 4)), dim=-1)
