"""Checkpoints on disk, under the names, shapes and values of the model that they are read into.

A checkpoint is a table of tensors and a way to read one of them; what formats do differently ends here. Which tensors a
model wants, and where they go, is `weights.py`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, get_tensor_name_map
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mainspring.core.backend import WeightScheme
from mainspring.core.config import ModelConfig
from mainspring.core.entry import Entry
from mainspring.core.errors import ModelError
from mainspring.core.gguf_file import GGUFFile
from mainspring.core.gguf_layouts import LAYOUTS, exact_scheme, packing_of, rounding_scheme
from mainspring.core.layers.stored import cut_stored
from mainspring.core.layers.weights import WHOLE, Cut
from mainspring.core.models.causal import Convention
from mainspring.core.ops.quantized import dequantize
from mainspring.core.prequantized.layout import schemes_of
from mainspring.core.prequantized.modules import QuantizedModules


class Checkpoint(ABC):
    """An open checkpoint. Reading one tensor holds one tensor in memory."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.entries: dict[str, Entry] = {}
        """By the model's names; a tensor that no model's name fits keeps its own."""

    @abstractmethod
    def read(self, name: str, cut: Cut = WHOLE) -> Tensor:
        """A tensor by the model's name, or a part of it: on the host, of any floating dtype; shaped as its entry."""

    def schemes(self, name: str, cut: Cut = WHOLE) -> Sequence[WeightScheme]:
        """Schemes under which `read_stored` gives this tensor or this part of it, preferred first; none for one that
        is not quantized, or cannot be cut there.
        """
        return ()

    def read_stored(self, name: str, cut: Cut = WHOLE) -> dict[str, Tensor]:
        """A quantized tensor in the neutral form of its `schemes`, on the host."""
        raise ModelError(f"{name} in {self.source} is not quantized")


class Safetensors(Checkpoint):
    """A directory with `model.safetensors`, or with the shards that `model.safetensors.index.json` names."""

    def __init__(self, directory: Path, convention: Convention, quantization: Mapping[str, Any] | None = None) -> None:
        super().__init__(directory)
        self._convention = convention
        self._files: dict[str, Any] = {}
        for file in _shards(directory):
            self._open(file)
        self._modules = QuantizedModules(self.entries, self._files, quantization or {}, str(directory))

    def schemes(self, name: str, cut: Cut = WHOLE) -> Sequence[WeightScheme]:
        return schemes_of(self._modules.read(name).scheme) if name in self._modules else ()

    def read_stored(self, name: str, cut: Cut = WHOLE) -> dict[str, Tensor]:
        return dict(cut_stored(self._modules.read(name), cut, name).tensors)

    def read(self, name: str, cut: Cut = WHOLE) -> Tensor:
        if name in self._modules:
            whole = self._modules.read(name)
            return cut.of(dequantize(whole.scheme, whole.tensors))
        file, stored = self._files[name], self.entries[name].stored
        # Of a part, only that part is read.
        part = file.get_tensor(stored) if cut is WHOLE else file.get_slice(stored)
        transposed = re.search(self._convention.transposed, name)
        tensor = cut.of_transposed(part) if transposed else cut.of(part)
        if re.search(self._convention.plus_one, name):
            # In float32, so that there is one rounding only: to the compute dtype.
            tensor = tensor.float() + 1
        return tensor

    def raw(self, name: str) -> Tensor:
        """A tensor as it is in the file."""
        tensor: Tensor = self._files[name].get_tensor(self.entries[name].stored)
        return tensor

    def unread(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor as the model has it, as the file would: what `read` did, the other way."""
        if re.search(self._convention.plus_one, name):
            tensor = tensor.float() - 1
        return tensor.t() if re.search(self._convention.transposed, name) else tensor

    def _open(self, file: Path) -> None:
        try:
            opened: Any = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} cannot be read ({error}); fetch it again") from error
        for stored in opened.keys():  # noqa: SIM118 (safe_open has keys and no iterator)
            name = self._convention.model_name(stored)
            if name is None:
                continue
            shape = tuple(opened.get_slice(stored).get_shape())
            if re.search(self._convention.transposed, name):
                shape = shape[::-1]
            self.entries[name] = Entry(stored, shape, 2 * prod(shape))
            self._files[name] = opened


class GGUF(Checkpoint):
    """A `.gguf` file; `read` dequantizes, `read_stored` gives blocks as they are.

    Names go through the table of the `gguf` package, from those that the model wants. Values are as llama.cpp's
    converter left them: 1 is added to Gemma's norms and GPT-2's weights are [out, in] already, but the rows of q and k
    of the llama architecture stand in the order of its interleaved rope.
    """

    def __init__(self, path: Path, config: ModelConfig, wanted: Iterable[str]) -> None:
        super().__init__(path)
        self._file = GGUFFile.open(path)
        self._num_heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
        self._interleaved = self._file.metadata["general.architecture"] == "llama"
        names = self._model_names(wanted, config.num_layers)
        for stored, tensor in self._file.tensors.items():
            if not stored.startswith(("rope_freqs.", "rope_factors_")):
                self.entries[names.get(stored, stored)] = Entry(stored, tensor.shape, tensor.num_bytes)

    def read(self, name: str, cut: Cut = WHOLE) -> Tensor:
        entry = self.entries[name]
        if len(entry.shape) == 1:  # a quantized vector has no rows to cut
            return cut.of(self._unrotated(entry, torch.from_numpy(self._file.read(entry.stored))))
        tensor = self._unrotated(entry, torch.from_numpy(self._file.read(entry.stored, cut.rows)))
        return Cut(columns=cut.columns).of(tensor)

    def schemes(self, name: str, cut: Cut = WHOLE) -> Sequence[WeightScheme]:
        entry = self.entries[name]
        packing = packing_of(self._file.tensors[entry.stored].kind.name)
        if packing is None or len(entry.shape) != 2:
            return ()
        if cut.columns is not None and any(column % LAYOUTS[packing].inputs for column in cut.columns):
            return ()
        return rounding_scheme(packing), exact_scheme(packing)

    def read_stored(self, name: str, cut: Cut = WHOLE) -> dict[str, Tensor]:
        entry = self.entries[name]
        packing = packing_of(self._file.tensors[entry.stored].kind.name)
        if packing is None:
            return super().read_stored(name, cut)
        rows = np.require(self._file.rows(entry.stored, cut.rows), requirements=["C", "W"])
        weight = self._unrotated(entry, torch.from_numpy(rows))
        if cut.columns is not None:
            layout = LAYOUTS[packing]
            first, past = (column // layout.inputs * layout.num_bytes for column in cut.columns)
            weight = weight[:, first:past].contiguous()
        return {"weight": weight}

    def _unrotated(self, entry: Entry, tensor: Tensor) -> Tensor:
        """In the order of our rope; the tensor has all of its rows, or those of some heads."""
        part = entry.stored.split(".")[-2]
        if not self._interleaved or part not in self._num_heads:
            return tensor
        return _halves(tensor, self._num_heads[part] * tensor.shape[0] // entry.shape[0])

    def _model_names(self, wanted: Iterable[str], num_layers: int) -> dict[str, str]:
        """GGUF's name for each name that the model wants, the other way round."""
        architectures = {name: architecture for architecture, name in MODEL_ARCH_NAMES.items()}
        architecture: MODEL_ARCH = architectures[self._file.metadata["general.architecture"]]
        table = get_tensor_name_map(architecture, num_layers)
        return {str(table.get_name(name, try_suffixes=(".weight", ".bias"))): name for name in wanted}


def _halves(tensor: Tensor, num_heads: int) -> Tensor:
    """Rows [heads, pair, 2] as [heads, 2, pair]: from rope on neighbours to rope on halves."""
    return tensor.reshape(num_heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _shards(directory: Path) -> list[Path]:
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if not index.exists():
        if not single.exists():
            raise ModelError(
                f"{directory} has neither model.safetensors nor model.safetensors.index.json; "
                "convert other formats to safetensors first"
            )
        return [single]
    try:
        weight_map = msgspec.json.decode(index.read_bytes(), type=_Index).weight_map
    except msgspec.MsgspecError as error:
        raise ModelError(f"{index} is not an index of safetensors: {error}") from error
    files = [directory / name for name in sorted(set(weight_map.values()))]
    missing = [file for file in files if not file.exists()]
    if missing:
        raise ModelError([f"{file}, which {index.name} names, is missing; fetch it" for file in missing])
    return files


class _Index(msgspec.Struct):
    weight_map: dict[str, str]
