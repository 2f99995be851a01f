"""The header of GGUF files: every type of value, and files that are none."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainspring.core.architectures import read_model_config
from mainspring.core.errors import ModelError
from mainspring.core.gguf_file import GGUFFile


def written(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -3)
    writer.add_uint16("u16", 60_000)
    writer.add_int16("i16", -300)
    writer.add_int32("i32", -70_000)
    writer.add_uint64("u64", 1 << 40)
    writer.add_int64("i64", -(1 << 40))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("flag", True)
    writer.add_string("text", "Käse")
    writer.add_array("words", ["a", "", "ß"])
    writer.add_array("integers", [1, -2, 3])
    writer.add_array("flags", [True, False])
    writer.add_tensor("matrix", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("vector", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values_and_tensors(tmp_path: Path) -> None:
    file = GGUFFile.open(written(tmp_path / "m.gguf"))
    assert file.metadata == {
        "general.architecture": "llama", "u8": 200, "i8": -3, "u16": 60_000, "i16": -300, "i32": -70_000,
        "u64": 1 << 40, "i64": -(1 << 40), "f32": 0.5, "f64": 0.1, "flag": True, "text": "Käse",
        "words": ["a", "", "ß"], "integers": [1, -2, 3], "flags": [True, False],
    }  # fmt: skip
    assert file.tensors["matrix"].shape == (2, 3)
    assert file.read("matrix").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert file.read("vector").dtype == np.float32
    assert file.read("vector").tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_blocks_of_many_values(tmp_path: Path, kind: str) -> None:
    stored = gguf.GGMLQuantizationType[kind]
    values, num_bytes = gguf.GGML_QUANT_SIZES[stored]
    # Bytes below 60 make no float16 scale infinite.
    rows = np.random.default_rng(0).integers(0, 60, size=(3, 2 * num_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("blocks", rows, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile.open(tmp_path / "m.gguf")
    assert file.tensors["blocks"].shape == (3, 2 * values)
    assert np.array_equal(file.read("blocks"), gguf.quants.dequantize(rows, stored))


def test_types_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("integers", np.arange(4, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"integers in .* is stored as I32, which cannot be dequantized"):
        GGUFFile.open(tmp_path / "m.gguf").read("integers")


@given(length=st.integers(min_value=0, max_value=600))
def test_no_prefix_of_a_file_is_mistaken_for_one(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    directory = tmp_path_factory.mktemp("cut")
    whole = written(directory / "whole.gguf").read_bytes()
    cut = directory / "cut.gguf"
    cut.write_bytes(whole[: min(length, len(whole) - 30)])
    with pytest.raises(ModelError, match=r"cut\.gguf"):
        GGUFFile.open(cut)


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(ModelError, match="does not exist"):
        GGUFFile.open(path)
    path.write_bytes(b"PK\x03\x04" + bytes(64))
    with pytest.raises(ModelError, match=r"is not a sound GGUF file \(it does not start with GGUF\)"):
        GGUFFile.open(path)
    path.write_bytes(b"GGUF\x00\x00\x00\x03" + bytes(64))
    with pytest.raises(ModelError, match="known are 2 and 3 in little-endian order"):
        GGUFFile.open(path)


def test_one_part_of_several_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="one of 3 parts; join them with llama-gguf-split --merge"):
        GGUFFile.open(tmp_path / "m.gguf")


def test_architectures_that_are_refused(tmp_path: Path) -> None:
    for architecture, message in (("lama", "unknown GGUF architecture 'lama'; did you mean 'llama'"),
                                  ("llama", "has no tensor token_embd.weight")):  # fmt: skip
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        with pytest.raises(ModelError, match=message):
            read_model_config(tmp_path / "m.gguf")


def test_mixtures_of_experts_are_refused_in_a_word(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_expert_count(8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match="is a mixture of 8 experts, which is not supported"):
        read_model_config(tmp_path / "m.gguf")
