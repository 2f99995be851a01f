"""The demo model (SmolLM2-135M-Instruct, GGUF) as a directory with float32 safetensors, for peers that read no GGUF.

    python benchmarks/cpu/unpack_demo.py DIRECTORY

Needs transformers. The weights are those of the GGUF file, dequantized, so that all peers compute with the same ones.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from mainspring.core.gguf_header import read_header
from mainspring.server.source import resolve
from mainspring.server.text.gguf_tokenizer import GGUFVocabulary, build_encoder

CONFIG = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def unpack(file: Path, directory: Path) -> None:
    """Writes config, weights and tokenizer."""
    with torch.device("meta"):
        empty = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    tensors = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=empty)["tensors"]
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG))
    missing = model.load_state_dict(tensors, strict=False).missing_keys
    if missing != ["lm_head.weight"]:
        raise ValueError(f"{file} lacks {missing}")
    model.tie_weights()
    model.save_pretrained(directory)
    encoder = build_encoder(GGUFVocabulary.of(read_header(file).metadata))
    transformers.PreTrainedTokenizerFast(tokenizer_object=encoder, eos_token="<|im_end|>").save_pretrained(directory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    directory = parser.parse_args().directory
    file = resolve("demo").path
    unpack(file, directory)
    print(f"{directory} is made of {file}")


if __name__ == "__main__":
    main()
