"""How configs spell rotary position embeddings: `rope_scaling` beside `rope_theta`, or one `rope_parameters`.

What the numbers do to a table is `core/layers/rope.py`.
"""

from __future__ import annotations

from mainspring.core.architectures.fields import Fields
from mainspring.core.config import RopeConfig
from mainspring.core.errors import ModelError

KINDS = {
    "default": "none", "none": "none", "linear": "linear", "dynamic": "dynamic", "llama3": "llama3", "yarn": "yarn",
    "longrope": "longrope", "su": "longrope",
}  # fmt: skip


def rope_parameters(fields: Fields) -> Fields:
    """The scaling's keys in either spelling, with `rope_theta` and `partial_rotary_factor` among them."""
    name = "rope_parameters" if fields.has("rope_parameters") else "rope_scaling"
    outer = ("rope_theta", "partial_rotary_factor")
    return fields.table(name).over(Fields({key: fields.values.get(key) for key in outer}, fields.source))


def read_rope(fields: Fields, head_dim: int, parameters: Fields | None = None, theta: float = 10000.0) -> RopeConfig:
    """The rope of a model with heads of `head_dim`; `parameters` where a model has several (Gemma 3)."""
    given = parameters if parameters is not None else rope_parameters(fields)
    kind = _kind(given)
    rotary_dim = int(head_dim * given.number("partial_rotary_factor", 1.0))
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise given.unusable("partial_rotary_factor", f"an even part of the head's {head_dim} dimensions must rotate")
    plain = RopeConfig(theta=given.number("rope_theta", theta), rotary_dim=rotary_dim)
    match kind:
        case "linear":
            return RopeConfig(plain.theta, rotary_dim, "linear", factor=given.number("factor"))
        case "dynamic":
            maximum = fields.integer("max_position_embeddings")
            return RopeConfig(plain.theta, rotary_dim, "dynamic", given.number("factor"), maximum)
        case "llama3":
            return _llama3(fields, given, plain)
        case "yarn":
            return _yarn(fields, given, plain)
        case "longrope":
            return _longrope(fields, given, plain)
    return plain


def served_positions(rope: RopeConfig | None, max_position: int) -> int:
    """The context length that a scaling leads to, where configs keep the unscaled one in `max_position_embeddings`."""
    if rope is None:
        return max_position
    match rope.scaling:
        case "linear" | "dynamic":
            return int(max_position * rope.factor)
        case "yarn":
            return max(max_position, int(rope.original_max_position * rope.factor))
    return max_position


def _kind(given: Fields) -> str:
    name = given.text("rope_type", given.text("type", "default"))
    if name not in KINDS:
        raise ModelError(
            f"rope type {name!r} in {given.source} is not supported; supported: {', '.join(sorted(set(KINDS)))}"
        )
    return KINDS[name]


def _original(fields: Fields, given: Fields) -> int:
    """Context of the unscaled model. Phi-3 keeps it beside the rope's own keys, and there it wins."""
    name = "original_max_position_embeddings"
    for place in (fields, given):
        if place.has(name):
            return place.integer(name)
    return fields.integer("max_position_embeddings")


def _ratio(fields: Fields, given: Fields, original: int) -> float:
    return given.number("factor", fields.integer("max_position_embeddings") / original)


def _llama3(fields: Fields, given: Fields, plain: RopeConfig) -> RopeConfig:
    low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
    if low >= high:
        raise given.unusable("low_freq_factor", f"it must be less than high_freq_factor, which is {high}")
    return RopeConfig(
        theta=plain.theta,
        rotary_dim=plain.rotary_dim,
        scaling="llama3",
        factor=given.number("factor"),
        original_max_position=_original(fields, given),
        low_frequency_factor=low,
        high_frequency_factor=high,
    )


def _yarn(fields: Fields, given: Fields, plain: RopeConfig) -> RopeConfig:
    original = _original(fields, given)
    return RopeConfig(
        theta=plain.theta,
        rotary_dim=plain.rotary_dim,
        scaling="yarn",
        factor=_ratio(fields, given, original),
        original_max_position=original,
        beta_fast=given.number("beta_fast", 32.0),
        beta_slow=given.number("beta_slow", 1.0),
        attention_factor=given.optional_number("attention_factor"),
        mscale=given.optional_number("mscale"),
        mscale_all_dim=given.optional_number("mscale_all_dim"),
        truncate=given.flag("truncate", True),
    )


def _longrope(fields: Fields, given: Fields, plain: RopeConfig) -> RopeConfig:
    original = _original(fields, given)
    for name in ("short_factor", "long_factor"):
        if len(given.numbers(name)) != plain.rotary_dim // 2:
            raise given.unusable(name, f"it needs {plain.rotary_dim // 2} numbers, half the rotating dimensions")
    return RopeConfig(
        theta=plain.theta,
        rotary_dim=plain.rotary_dim,
        scaling="longrope",
        factor=_ratio(fields, given, original),
        original_max_position=original,
        attention_factor=given.optional_number("attention_factor"),
        short_factors=given.numbers("short_factor"),
        long_factors=given.numbers("long_factor"),
    )
