"""GGUF files of every kind of block that is kept, by llama.cpp's own quantizer:

    python -m tests.quantized.llamacpp SOURCE.gguf OUT [KIND ...]

In an environment with llama-cpp-python (0.3.36 here); nothing else of this project's is needed. Where a row does not
divide into a block's values llama.cpp takes another kind of block, as it does for everybody.
"""

from __future__ import annotations

import sys
from pathlib import Path

import llama_cpp

KINDS = {
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_1,
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "q5_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_K_M,
    "q6_k": llama_cpp.LLAMA_FTYPE_MOSTLY_Q6_K,
}


def make(source: Path, out: Path, kind: str) -> None:
    """One file. Raises `OSError` where llama.cpp refuses."""
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize, options.nthread = KINDS[kind], True, 1
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), options):
        raise OSError(f"llama.cpp does not make {kind} of {source}")


def main(source: Path, directory: Path, kinds: list[str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for kind in kinds or KINDS:
        make(source, directory / f"{kind}.gguf", kind)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
