"""Which kind of speculator a path holds.

Configs of heads leave out what their tensors say: Medusa's names no sizes and often the wrong number of heads, EAGLE's
calls itself a Llama. So the headers of the safetensors are read, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

from mainspring.core.architectures.count import parameter_count
from mainspring.core.architectures.fields import Fields
from mainspring.core.architectures.read import read_json, read_model_config
from mainspring.core.architectures.readers import read_llama
from mainspring.core.architectures.speculators import names
from mainspring.core.architectures.speculators.configs import (
    DraftModelConfig,
    Eagle3Config,
    EagleConfig,
    MedusaConfig,
    MLPSpeculatorConfig,
    SpeculatorConfig,
    mismatches,
)
from mainspring.core.architectures.speculators.headers import tensor_shapes
from mainspring.core.architectures.speculators.vocabulary import other_words
from mainspring.core.architectures.table import NO_PLUGINS
from mainspring.core.config import ModelConfig
from mainspring.core.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]

MEDUSA_FILE = "medusa_lm_head.safetensors"
"""Where Medusa's heads lie, possibly beside a whole model."""

_TAPS = "eagle_aux_hidden_state_layer_ids"
_LAYERS_FOR_USUAL_TAPS = 6
"""Layers that a model must have for EAGLE-3's usual three to stand in order."""


def read_speculator(
    path: Path, target: ModelConfig, plugins: Mapping[str, str] = NO_PLUGINS, target_path: Path | None = None
) -> SpeculatorConfig:
    """What lies at `path`: a draft model (a directory or a `.gguf` file), or a directory of heads.

    Raises `ModelError` with every reason when it cannot be read or is not for this target, which lies at `target_path`.
    """
    found = _read(path, target, plugins)
    reasons = mismatches(found, target)
    if isinstance(found, DraftModelConfig) and target_path is not None and (other := other_words(path, target_path)):
        reasons.append(other)
    if reasons:
        raise ModelError([f"speculator {path}: {reason}" for reason in reasons])
    return found


def head_files(directory: Path) -> list[Path]:
    """The safetensors of a directory of heads. Raises `ModelError` where there are none."""
    medusa = directory / MEDUSA_FILE
    files = [medusa] if medusa.exists() else sorted(directory.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{directory} has no .safetensors; convert other formats to safetensors first")
    return files


def _read(path: Path, target: ModelConfig, plugins: Mapping[str, str]) -> SpeculatorConfig:
    if not path.is_dir():
        return _draft_model(path, plugins)
    fields = Fields(read_json(path / "config.json"), str(path / "config.json"))
    architectures = fields.texts("architectures") if fields.has("architectures") else ()
    if (path / MEDUSA_FILE).exists() or fields.has("medusa_num_heads") or "MedusaModel" in architectures:
        return _medusa(path)
    if fields.text("model_type", "") == "mlp_speculator" or "MLPSpeculatorPreTrainedModel" in architectures:
        return _mlp_speculator(path, fields)
    shapes = _shapes(path, names.EAGLE) if any(path.glob("*.safetensors")) else {}
    if "fc.weight" not in shapes:
        return _draft_model(path, plugins)
    # Only EAGLE-3 norms the hidden states that it reads.
    return _eagle3(fields, shapes, target) if "midlayer.hidden_norm.weight" in shapes else _eagle(fields, shapes)


def _draft_model(path: Path, plugins: Mapping[str, str]) -> DraftModelConfig:
    model = read_model_config(path, plugins)
    return DraftModelConfig(model=model, parameters=parameter_count(model))


def _medusa(path: Path) -> MedusaConfig:
    shapes = _shapes(path, names.MEDUSA)
    first = shapes.get("heads.0.blocks.0.linear.weight")
    if first is None:
        raise ModelError(f"{path} has no tensor 0.0.linear.weight, so its heads are not Medusa's")
    of_first = [name for name in shapes if name.startswith("heads.0.")]
    scores = shapes.get("heads.0.scores.weight")
    return MedusaConfig(
        hidden_size=first[1],
        vocab_size=None if scores is None else scores[0],
        num_heads=len({name.split(".")[1] for name in shapes}),
        num_layers=sum(name.endswith(".linear.weight") for name in of_first),
        bias="heads.0.blocks.0.linear.bias" in shapes,
        parameters=_count(shapes),
    )


def _mlp_speculator(path: Path, fields: Fields) -> MLPSpeculatorConfig:
    hidden_size = fields.integer("emb_dim")
    inner = fields.values.get("inner_dim")
    return MLPSpeculatorConfig(
        hidden_size=hidden_size,
        # 0 stands for the same size.
        inner_size=fields.integer("inner_dim") if inner else hidden_size,
        vocab_size=fields.integer("vocab_size"),
        num_links=fields.integer("n_predict"),
        tied=fields.flag("tie_weights", False),
        scales_input=fields.flag("scale_input", False),
        parameters=_count(_shapes(path, names.MLP)),
    )


def _eagle(fields: Fields, shapes: Shapes) -> EagleConfig:
    return EagleConfig(
        model=_one_layer(fields),
        bias="fc.bias" in shapes,
        own_embedding="embed_tokens.weight" in shapes,
        own_head="lm_head.weight" in shapes,
        parameters=_count(shapes),
    )


def _eagle3(fields: Fields, shapes: Shapes, target: ModelConfig) -> Eagle3Config:
    if "lm_head.weight" not in shapes:
        raise ModelError(f"{fields.source} belongs to an EAGLE-3 head without a tensor lm_head.weight; fetch it again")
    taps = _taps(fields, target.num_layers)
    return Eagle3Config(
        model=_one_layer(fields),
        target_hidden_size=shapes["fc.weight"][1] // len(taps),
        taps=taps,
        draft_vocab_size=shapes["lm_head.weight"][0],
        maps_vocabulary="d2t" in shapes,
        own_embedding="embed_tokens.weight" in shapes,
        norm_before_residual=fields.flag("norm_before_residual", False),
        parameters=_count({name: shape for name, shape in shapes.items() if name not in ("t2d", "d2t")}),
    )


def _taps(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """Those that the config names, else EAGLE-3's own: near the beginning, in the middle and near the end."""
    named = fields.table("eagle_config").over(fields)
    if named.has(_TAPS):
        return tuple(int(layer) for layer in named.numbers(_TAPS))
    if num_layers < _LAYERS_FOR_USUAL_TAPS:
        raise ModelError(f"{fields.source} does not say which of {num_layers} layers the head reads; add {_TAPS}")
    return 2, num_layers // 2, num_layers - 3


def _one_layer(fields: Fields) -> ModelConfig:
    fields = fields.over(Fields({"num_hidden_layers": 1}, fields.source))
    if fields.integer("num_hidden_layers") != 1:
        raise fields.unusable("num_hidden_layers", "heads of EAGLE's kind have one layer")
    return read_llama(fields)


def _shapes(directory: Path, renaming: names.Renaming) -> Shapes:
    """Of all tensors in a directory of heads, by the modules' names."""
    held: dict[str, tuple[int, ...]] = {}
    for file in head_files(directory):
        held |= tensor_shapes(file)
    return {names.renamed(name, renaming): shape for name, shape in held.items()}


def _count(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes.values())
