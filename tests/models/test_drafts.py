"""Heads that draft, against plain torch over the same tensors; recurrent ones in one pass and in pieces."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers.models.llama import modeling_llama

from mainspring.core.architectures.speculators import (
    DraftModelConfig,
    Eagle3Config,
    EagleConfig,
    MedusaConfig,
    MLPSpeculatorConfig,
    cached_model,
    read_speculator,
)
from mainspring.core.architectures.speculators.reading import head_files
from mainspring.core.errors import ModelError
from mainspring.core.layers.attention import AttentionStep
from mainspring.core.layers.factory import LayerFactory
from mainspring.core.models.drafts.building import build_heads, build_recurrent
from mainspring.core.models.drafts.contract import Heads, Recurrent
from mainspring.core.models.drafts.tapping import Tapped
from mainspring.core.ops import resolve
from mainspring.core.weights import load_heads
from tests.models.conftest import Pair, load
from tests.support import tiny_drafts, tiny_models
from tests.support.model_driver import ModelDriver, Track
from tests.support.reference_device import ReferenceDevice

ROWS = 5


@pytest.fixture
def target(pair: Callable[[str], Pair]) -> Pair:
    return pair("llama")


def make() -> LayerFactory:
    device = ReferenceDevice()
    return LayerFactory(resolve(device.ops()), device, tiny_models.LENGTH + tiny_models.GENERATED)


def loaded(path: Path, target: Pair) -> Any:
    """The drafter at a path, filled."""
    config = read_speculator(path, target.config)
    assert not isinstance(config, DraftModelConfig)
    built: Heads | Recurrent
    if isinstance(config, MedusaConfig | MLPSpeculatorConfig):
        built = build_heads(config, make(), target.ours, torch.float32)
    else:
        built = build_recurrent(config, make(), target.ours, torch.float32)
    load_heads(
        built, head_files(path), built.convention, ReferenceDevice(), torch.float32, lambda phase, done, total: None
    )
    return built


def states() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(ROWS, tiny_drafts.HIDDEN, generator=generator)
    return hidden, torch.randint(tiny_models.VOCABULARY, (ROWS,), generator=generator)


@torch.inference_mode()
def drafted(heads: Heads, count: int) -> tuple[list[Tensor], list[Tensor]]:
    """(scores of each draft, the drafts)."""
    hidden, tokens = states()
    scores: list[Tensor] = []

    def choose(scores_RV: Tensor) -> Tensor:
        scores.append(scores_RV)
        return scores_RV.argmax(-1)

    return scores, list(heads.drafts(hidden, tokens, count, choose))


# --- heads -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own_scores", [True, False])
def test_medusas_heads_are_residual_blocks_and_a_projection(target: Pair, tmp_path: Path, own_scores: bool) -> None:
    tensors = tiny_drafts.medusa(tmp_path, own_scores=own_scores)
    scores, drafts = drafted(loaded(tmp_path, target), 3)
    for head, found in enumerate(scores):
        x, _ = states()
        for block in range(2):
            linear = f"{head}.{block}.linear"
            x = x + F.silu(x @ tensors[f"{linear}.weight"].T + tensors[f"{linear}.bias"])
        expected = x @ (tensors[f"{head}.2.weight"] if own_scores else target.theirs.lm_head.weight).T
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(drafts[head], expected.argmax(-1))


def test_medusa_is_read_under_vllms_names_too(target: Pair, tmp_path: Path) -> None:
    tensors = tiny_drafts.medusa(tmp_path / "a", num_layers=1)
    renamed = {}
    for name, tensor in tensors.items():
        head, place, *rest = name.split(".")
        renamed[f"blocks.{head}.layers.{place}.{rest[1]}" if rest[0] == "linear" else f"lm_heads.{head}.weight"] = (
            tensor
        )
    tiny_drafts.save(tmp_path / "b", {"architectures": ["MedusaModel"]}, renamed, "model.safetensors")
    ours, same = (drafted(loaded(tmp_path / name, target), 3)[0] for name in ("a", "b"))
    assert all(torch.equal(one, other) for one, other in zip(ours, same, strict=True))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scale_input", [True, False])
def test_an_mlp_speculator_is_a_chain(target: Pair, tmp_path: Path, tied: bool, scale_input: bool) -> None:
    tensors = tiny_drafts.mlp_speculator(tmp_path, tied=tied, scale_input=scale_input)
    scores, drafts = drafted(loaded(tmp_path, target), 3)
    state, tokens = states()
    if scale_input:
        state = state / state.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt() / 2**0.5
    state_weight = 0.5 ** (0.5 / 3)
    token_weight = math.sqrt(1 - state_weight**2) * math.sqrt(tiny_drafts.INNER / 2)
    for link, found in enumerate(scores):
        own = 0 if tied else link
        projected = state @ tensors[f"speculator.proj.{min(link, 1) if tied else link}.weight"].T
        x = projected * state_weight + tensors[f"speculator.emb.{own}.weight"][tokens] * token_weight
        x = x / x.pow(2).mean(-1, keepdim=True).add(1e-6).sqrt()
        state = F.gelu(x * tensors[f"speculator.ln.{own}.weight"] + tensors[f"speculator.ln.{own}.bias"])
        expected = state @ tensors[f"speculator.head.{own}.weight"].T
        tokens = expected.argmax(-1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(drafts[link], tokens)


# --- drafters with a cache -------------------------------------------------------------------------------------------


def their_layer(tensors: dict[str, Tensor], prefix: str, *, norms_input: bool) -> Any:
    """transformers' Llama layer, without its first norm where EAGLE has none."""
    config = transformers.LlamaConfig(**{**tiny_models.SMALL, "num_hidden_layers": 1}, attn_implementation="eager")
    layer = modeling_llama.LlamaDecoderLayer(config, 0).eval()
    if not norms_input:
        layer.input_layernorm = torch.nn.Identity()
    for name in ("q_proj", "k_proj", "v_proj"):
        weight = tensors[f"{prefix}.self_attn.{name}.weight"]
        setattr(layer.self_attn, name, torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    held = {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    held.pop("hidden_norm.weight", None)
    layer.load_state_dict(held)
    return layer, modeling_llama.LlamaRotaryEmbedding(config)


def inputs(features: int, seed: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(tiny_models.VOCABULARY, (tiny_models.LENGTH,), generator=generator)
    hidden = torch.randn(tiny_models.LENGTH, features, generator=generator)
    return tokens, hidden, torch.arange(tiny_models.LENGTH)


def causal(length: int) -> Tensor:
    return torch.full((1, 1, length, length), -torch.inf).triu(1)


class PagedDrafter:
    """Drives a recurrent drafter over a paged cache, in pieces."""

    def __init__(self, drafter: Recurrent, target: Pair) -> None:
        self.drafter = drafter
        config = msgspec.structs.replace(target.config, num_layers=1)
        self.driver, self.track = ModelDriver(target.ours, config), Track([])

    @torch.inference_mode()
    def states(self, tokens: Tensor, hidden: Tensor, pieces: list[int]) -> Tensor:
        found, start = [], 0
        for count in pieces:
            metadata = self.driver._metadata([(self.track, count)], [count])
            self.track.done += count
            span = slice(start, start + count)
            step = AttentionStep(self.driver.kv, metadata)
            positions = torch.arange(start, start + count)
            found.append(self.drafter(tokens[span], self.drafter.features(hidden[span]), positions, step))
            start += count
        return torch.cat(found)


PIECES = [1, 11, 1, 16]


@pytest.mark.parametrize("own_ends", [True, False])
@torch.inference_mode()
def test_eagle_is_a_layer_over_token_and_state(target: Pair, tmp_path: Path, own_ends: bool) -> None:
    tensors = tiny_drafts.eagle(tmp_path, own_ends=own_ends)
    assert isinstance(read_speculator(tmp_path, target.config), EagleConfig)
    drafter = loaded(tmp_path, target)
    tokens, hidden, positions = inputs(tiny_drafts.HIDDEN)
    embedding = tensors["embed_tokens.weight"] if own_ends else target.theirs.model.embed_tokens.weight
    x = torch.cat((embedding[tokens], hidden), -1) @ tensors["fc.weight"].T + tensors["fc.bias"]
    layer, rotary = their_layer(tensors, "layers.0", norms_input=False)
    expected = layer(x[None], attention_mask=causal(len(x)), position_embeddings=rotary(x[None], positions[None]))[0]
    found = PagedDrafter(drafter, target).states(tokens, hidden, PIECES)
    torch.testing.assert_close(found, expected.reshape(found.shape), rtol=1e-4, atol=1e-4)
    scores = tensors["lm_head.weight"] if own_ends else target.theirs.lm_head.weight
    torch.testing.assert_close(drafter.logits(found), found @ scores.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm_before_residual", [True, False])
@torch.inference_mode()
def test_eagle3_mixes_depths_and_scores_a_part(target: Pair, tmp_path: Path, norm_before_residual: bool) -> None:
    tensors = tiny_drafts.eagle3(tmp_path, norm_before_residual=norm_before_residual)
    assert isinstance(read_speculator(tmp_path, target.config), Eagle3Config)
    drafter = loaded(tmp_path, target)
    tokens, hidden, positions = inputs(len(tiny_drafts.TAPS) * tiny_drafts.HIDDEN)

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * tensors[name]

    mixed = hidden @ tensors["fc.weight"].T
    layer, rotary = their_layer(tensors, "midlayer", norms_input=True)
    normed = norm(mixed, "midlayer.hidden_norm.weight")
    embedded = norm(target.theirs.model.embed_tokens.weight[tokens], "midlayer.input_layernorm.weight")
    both = torch.cat((embedded, normed), -1)[None]
    attended, _ = layer.self_attn(
        both, position_embeddings=rotary(both, positions[None]), attention_mask=causal(len(mixed))
    )
    x = (normed if norm_before_residual else mixed) + attended[0]
    expected = x + layer.mlp(layer.post_attention_layernorm(x))
    beside_final_states = torch.cat((torch.full((len(hidden), tiny_drafts.HIDDEN), torch.nan), hidden), -1)
    found = PagedDrafter(drafter, target).states(tokens, beside_final_states, PIECES)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    part = norm(found, "norm.weight") @ tensors["lm_head.weight"].T
    scores = drafter.logits(found)
    scored = tensors["t2d"]
    assert scores.shape == (len(found), tiny_models.VOCABULARY)
    torch.testing.assert_close(scores[:, scored], part, rtol=1e-4, atol=1e-4)
    assert torch.all(scores[:, ~scored] == -torch.inf)


@torch.inference_mode()
def test_a_tapped_model_gives_the_inputs_of_its_layers_and_the_same_scores(target: Pair) -> None:
    plain, config = load(target.path, tiny_models.LENGTH)
    tapped = Tapped(load(target.path, tiny_models.LENGTH)[0], (1, 0), config.hidden_size)
    theirs = target.theirs(torch.tensor([target.tokens]), output_hidden_states=True, use_cache=False)
    seen: list[Tensor] = []

    class Seeing(ModelDriver):
        def step(self, rows: list[tuple[Track, int]]) -> list[Tensor]:
            inner = self.model.forward

            def forward(*given: Any) -> Tensor:
                seen.append(inner(*given))
                return seen[-1]

            self.model.forward = forward  # type: ignore[method-assign]
            return super().step(rows)

    (expected,) = ModelDriver(plain, config).step([(Track(target.tokens), len(target.tokens))])
    (found,) = Seeing(tapped, config).step([(Track(target.tokens), len(target.tokens))])
    assert torch.equal(found, expected)
    _, first, second = seen[0].split(config.hidden_size, dim=-1)
    torch.testing.assert_close(first, theirs.hidden_states[0][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(second, theirs.hidden_states[1][0], rtol=1e-4, atol=1e-4)


# --- which they are, and for whom ------------------------------------------------------------------------------------


def test_a_smaller_model_is_a_draft_model(target: Pair) -> None:
    found = read_speculator(target.path, target.config)
    assert isinstance(found, DraftModelConfig)
    assert cached_model(found) == target.config


def test_what_does_not_fit_is_said_with_both_sizes(target: Pair, tmp_path: Path) -> None:
    other = msgspec.structs.replace(target.config, vocab_size=90, hidden_size=64, num_layers=1)
    tiny_drafts.medusa(tmp_path / "medusa")
    with pytest.raises(ModelError) as raised:
        read_speculator(tmp_path / "medusa", other)
    assert "knows 89 tokens and the model 90" in str(raised.value)
    assert "of 48 features and the model's have 64" in str(raised.value)
    tiny_drafts.eagle3(tmp_path / "eagle3")
    with pytest.raises(ModelError, match="reads the input of layer 1"):
        read_speculator(tmp_path / "eagle3", other)
    with pytest.raises(ModelError, match="knows 89 tokens and the model 90"):
        read_speculator(target.path, other)


def test_heads_of_other_formats_are_refused_with_the_way_out(target: Pair, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"medusa_num_heads": 2}')
    with pytest.raises(ModelError, match="convert other formats to safetensors"):
        read_speculator(tmp_path, target.config)
    (tmp_path / "medusa_lm_head.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ModelError, match="not a safetensors file"):
        read_speculator(tmp_path, target.config)


@pytest.mark.parametrize("as_list", [False, True])
def test_a_draft_model_of_other_words_is_refused(target: Pair, tmp_path: Path, as_list: bool) -> None:
    def directory(name: str, words: list[str]) -> Path:
        shutil.copytree(target.path, tmp_path / name)
        vocab = [[word, -1.0] for word in words] if as_list else {word: token for token, word in enumerate(words)}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"type": "any", "vocab": vocab}}))
        return tmp_path / name

    model, same, other = (
        directory("model", ["a", "b", "c"]),
        directory("same", ["a", "b"]),
        directory("other", ["b", "a"]),
    )
    assert read_speculator(same, target.config, target_path=model)
    with pytest.raises(ModelError, match="its token 0 is 'b' and the model's 'a'"):
        read_speculator(other, target.config, target_path=model)
