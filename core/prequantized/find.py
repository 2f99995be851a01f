"""The reader of a layout."""

from __future__ import annotations

from collections.abc import Mapping

from mainspring.core.prequantized.awq import AWQ, AWQByOutput
from mainspring.core.prequantized.bitsandbytes import BitsAndBytes
from mainspring.core.prequantized.compressed import Compressed
from mainspring.core.prequantized.format import Format
from mainspring.core.prequantized.fp8 import FP8
from mainspring.core.prequantized.gptq import GPTQ
from mainspring.core.prequantized.hqq import HQQ
from mainspring.core.prequantized.layout import Layout
from mainspring.core.prequantized.marlin import Marlin
from mainspring.core.prequantized.mxfp4 import MXFP4
from mainspring.core.prequantized.torchao import TorchAO


def find(layout: Layout, notes: Mapping[str, str]) -> Format:
    """The reader; `notes` are the metadata of the checkpoint's files."""
    match layout.reader:
        case "gptq":
            return GPTQ(layout.zero_offset)
        case "marlin":
            return Marlin()
        case "awq":
            return AWQ()
        case "awq-gemv":
            return AWQByOutput(layout.scheme)
        case "compressed":
            return Compressed(layout)
        case "fp8":
            return FP8(layout.scheme)
        case "bitsandbytes":
            return BitsAndBytes()
        case "torchao":
            return TorchAO(notes)
        case "hqq":
            return HQQ()
        case "mxfp4":
            return MXFP4(layout.scheme)
