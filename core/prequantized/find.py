"""The reader of a layout."""

from __future__ import annotations

from mainspring.core.prequantized.awq import AWQ
from mainspring.core.prequantized.bitsandbytes import BitsAndBytes
from mainspring.core.prequantized.compressed import Compressed
from mainspring.core.prequantized.format import Format
from mainspring.core.prequantized.fp8 import FP8
from mainspring.core.prequantized.gptq import GPTQ
from mainspring.core.prequantized.layout import Layout


def find(layout: Layout) -> Format:
    """The reader."""
    match layout.reader:
        case "gptq":
            return GPTQ(layout.zero_offset)
        case "awq":
            return AWQ()
        case "compressed":
            return Compressed(layout)
        case "fp8":
            return FP8(layout.scheme)
        case _:
            return BitsAndBytes()
