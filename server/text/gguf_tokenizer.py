"""A `tokenizers` encoder built from the vocabulary inside a GGUF file.

Two families: `gpt2` (byte-level BPE; the split into words goes by `tokenizer.ggml.pre`) and `llama` (SentencePiece BPE
with byte fallback). The rules of each name in the table are those of the model's original tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import Sequence as ProcessorSequence
from tokenizers.processors import TemplateProcessing

from mainspring.core.errors import ModelError, unknown

# Values of `tokenizer.ggml.token_type`.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6


@dataclass(frozen=True, slots=True)
class _WordRule:
    """How byte-level BPE cuts text into words before merging."""

    pattern: str | None = None
    """A regular expression whose matches are words; None for GPT-2's own."""
    single_digits: bool = False
    ignore_merges: bool = False
    """A whole word that is in the vocabulary is taken as it is."""
    nfc: bool = False
    adds_bos: bool = False
    """Where the file does not say (`tokenizer.ggml.add_bos_token`)."""


_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HEAD = r"[^\r\n\p{L}\p{N}]?"
_TAIL = rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
_GPT4O = rf"{_HEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_HEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?|\p{{N}}{{1,3}}{_TAIL}"
_TEKKEN = rf"{_HEAD}{_UPPER}*{_LOWER}+|{_HEAD}{_UPPER}+{_LOWER}*|\p{{N}}{_TAIL}"

_GPT2_RULE = _WordRule()
_DIGITS_RULE = _WordRule(single_digits=True)
_LLAMA3_RULE = _WordRule(_LLAMA3, ignore_merges=True, adds_bos=True)
_QWEN2_RULE = _WordRule(_QWEN2, nfc=True)
_WORD_RULES: Mapping[str, _WordRule] = {
    "default": _GPT2_RULE,
    "gpt-2": _GPT2_RULE,
    "mpt": _GPT2_RULE,
    "olmo": _GPT2_RULE,
    "smollm": _DIGITS_RULE,
    "starcoder": _DIGITS_RULE,
    "refact": _DIGITS_RULE,
    "command-r": _DIGITS_RULE,
    "llama-bpe": _LLAMA3_RULE,
    "llama3": _LLAMA3_RULE,
    "llama-v3": _LLAMA3_RULE,
    "qwen2": _QWEN2_RULE,
    "deepseek-r1-qwen": _QWEN2_RULE,
    "gpt-4o": _WordRule(_GPT4O),
    "tekken": _WordRule(_TEKKEN, ignore_merges=True, adds_bos=True),
}


@dataclass(frozen=True, slots=True)
class GGUFVocabulary:
    """What the metadata says about tokens."""

    family: str
    word_rule: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    bos_id: int | None
    eos_id: int | None
    add_bos: bool | None
    add_space_prefix: bool
    chat_template: str | None

    @classmethod
    def of(cls, metadata: Mapping[str, Any]) -> GGUFVocabulary:
        """Raises ModelError when the file holds no vocabulary."""
        if "tokenizer.ggml.tokens" not in metadata:
            raise ModelError("the GGUF file holds no tokenizer (tokenizer.ggml.tokens); convert the model again")
        tokens = metadata["tokenizer.ggml.tokens"]
        return cls(
            family=metadata.get("tokenizer.ggml.model", ""),
            word_rule=metadata.get("tokenizer.ggml.pre", "default"),
            tokens=tokens,
            types=metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens),
            scores=metadata.get("tokenizer.ggml.scores") or [0.0] * len(tokens),
            merges=metadata.get("tokenizer.ggml.merges", []),
            bos_id=metadata.get("tokenizer.ggml.bos_token_id"),
            eos_id=metadata.get("tokenizer.ggml.eos_token_id"),
            add_bos=metadata.get("tokenizer.ggml.add_bos_token"),
            add_space_prefix=metadata.get("tokenizer.ggml.add_space_prefix", True),
            chat_template=metadata.get("tokenizer.chat_template"),
        )

    def text(self, token_id: int | None) -> str:
        """A token as written in the vocabulary; empty for None."""
        return "" if token_id is None else self.tokens[token_id]


def build_encoder(vocabulary: GGUFVocabulary) -> Tokenizer:
    """The encoder, special tokens and BOS included. Raises ModelError for a family or word rule not known here."""
    if vocabulary.family == "gpt2":
        encoder, adds_bos = _byte_level_bpe(vocabulary)
    elif vocabulary.family == "llama":
        encoder, adds_bos = _sentencepiece_bpe(vocabulary), True
    else:
        raise ModelError(unknown("tokenizer.ggml.model", vocabulary.family, ["gpt2", "llama"]))
    special = [t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind in (_UNKNOWN, _CONTROL)]
    encoder.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    defined = [t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == _USER_DEFINED]
    encoder.add_tokens([AddedToken(token, normalized=False, special=False) for token in defined])
    if vocabulary.bos_id is not None and (adds_bos if vocabulary.add_bos is None else vocabulary.add_bos):
        bos = vocabulary.text(vocabulary.bos_id)
        template = TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocabulary.bos_id)])
        encoder.post_processor = ProcessorSequence([template])
    return encoder


def _byte_level_bpe(vocabulary: GGUFVocabulary) -> tuple[Tokenizer, bool]:
    rule = _WORD_RULES.get(vocabulary.word_rule)
    if rule is None:
        raise ModelError(unknown("tokenizer.ggml.pre", vocabulary.word_rule, _WORD_RULES))
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    merges = [_pair(merge) for merge in vocabulary.merges]
    encoder = Tokenizer(BPE(vocab=ids, merges=merges, ignore_merges=rule.ignore_merges))
    if rule.nfc:
        encoder.normalizer = normalizers.NFC()
    encoder.pre_tokenizer = _word_splitter(rule)
    encoder.decoder = decoders.ByteLevel()
    return encoder, rule.adds_bos


def _pair(merge: str) -> tuple[str, str]:
    # A space never occurs inside a byte-level token, so the only one separates the two.
    left, _, right = merge.partition(" ")
    return left, right


def _word_splitter(rule: _WordRule) -> pre_tokenizers.PreTokenizer:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.pattern is None)
    if rule.pattern is not None:
        return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(rule.pattern), "isolated"), byte_level])
    if rule.single_digits:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    return byte_level


def _sentencepiece_bpe(vocabulary: GGUFVocabulary) -> Tokenizer:
    """SentencePiece's BPE: the file has a score for each piece and no merges; these follow from the scores."""
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    unknown_token = next(
        (t for t, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind == _UNKNOWN), None
    )
    model = BPE(vocab=ids, merges=_merges(vocabulary), unk_token=unknown_token, fuse_unk=True, byte_fallback=True)
    encoder = Tokenizer(model)
    spaces = normalizers.Replace(" ", "▁")
    prefixed = [normalizers.Prepend("▁"), spaces] if vocabulary.add_space_prefix else [spaces]
    encoder.normalizer = normalizers.Sequence(prefixed)
    strip = [decoders.Strip(content=" ", left=1)] if vocabulary.add_space_prefix else []
    encoder.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return encoder


def _merges(vocabulary: GGUFVocabulary) -> list[tuple[str, str]]:
    """All ways to join two pieces into a third, the best-scored result first (Sennrich et al. 2016, by score)."""
    mergeable = {
        token: token_id
        for token_id, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind not in (_UNKNOWN, _CONTROL, _BYTE)
    }
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, token_id in mergeable.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in mergeable and right in mergeable:
                ranked.append((-vocabulary.scores[token_id], mergeable[left], mergeable[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]
