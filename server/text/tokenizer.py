"""Text to token ids, and a token id to its bytes, on the `tokenizers` library alone.

`load_tokenizer` reads a model directory (`tokenizer.json`, `tokenizer_config.json`) or a GGUF file
(`gguf_tokenizer.py`). Text that is being generated is put together in `detokenizer.py`, chats in `template.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Encoder

from mainspring.core.errors import ModelError
from mainspring.core.gguf_header import read_header
from mainspring.server.errors import invalid
from mainspring.server.text.gguf_tokenizer import GGUFVocabulary, build_encoder

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ANCHOR = "a"


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The special tokens that templates and BOS rules speak of; empty and None where the model has none."""

    bos: str = ""
    bos_id: int | None = None
    eos: str = ""
    others: Mapping[str, str] | None = None
    """`pad_token`, `unk_token` and the like, by their names in tokenizer_config.json."""


class TooManyTokens(Exception):
    """A prompt is longer than its caller has a use for."""

    def __init__(self, count: int) -> None:
        super().__init__(f"the prompt has {count} tokens")
        self.count = count


class Tokenizer:
    """Encodes prompts and knows each token's bytes. Safe to use from several threads."""

    def __init__(
        self,
        encoder: Encoder,
        special: SpecialTokens,
        chat_template: str | None = None,
        tool_template: str | None = None,
    ) -> None:
        self._encoder = encoder
        self.special = special
        self.chat_template = chat_template
        """Jinja source, or None for a model without one."""
        self.tool_template = tool_template
        """That for chats with tools, where it is one of its own."""
        self.vocab_size: int = encoder.get_vocab_size(with_added_tokens=True)
        added = encoder.get_added_tokens_decoder()
        self._special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._added = {token_id: token.content.encode() for token_id, token in added.items()}
        self._ordinary_bytes = _token_to_bytes(encoder)
        self._known_bytes: dict[int, bytes] = {}

    def encode(self, text: str, add_special_tokens: bool = True, *, most: int | None = None) -> list[int]:
        """Token ids of a prompt. A BOS token that the text itself begins with is not doubled.

        Raises RequestError for text that is no Unicode (lone surrogates), and TooManyTokens where there are more than
        `most`: a list of millions would hold everybody up, and be thrown away.
        """
        try:
            # Unlike `encode`, a batch of one is encoded without the interpreter's lock, so the event loop goes on.
            (encoding,) = self._encoder.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except TypeError as error:
            raise invalid("text holds a lone surrogate and is not valid Unicode", "inputs") from error
        if most is not None and len(encoding) > most + 1:  # one may be a doubled BOS
            raise TooManyTokens(len(encoding))
        return self._without_doubled_bos(encoding.ids, add_special_tokens)

    def spans(self, text: str, add_special_tokens: bool = True) -> list[tuple[int, int, int]]:
        """As `encode`, each id with the characters of `text` that it covers: first, and one past the last.

        Tokens that stand for no text, and parts of a character after its first byte, may cover none of their own.
        """
        try:
            encoding = self._encoder.encode(text, add_special_tokens=add_special_tokens)
        except TypeError as error:
            raise invalid("text holds a lone surrogate and is not valid Unicode", "inputs") from error
        found = [
            (token_id, start, stop) for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
        ]
        return found[len(found) - len(self._without_doubled_bos(encoding.ids, add_special_tokens)) :]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of a whole list of ids, special tokens left out, as the detokenizer would have streamed it."""
        return b"".join(self.token_bytes(i) for i in ids if not self.is_special(i)).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token stands for inside a text; nothing for an id outside the vocabulary."""
        known = self._known_bytes.get(token_id)
        if known is None:
            known = self._known_bytes[token_id] = self._find_bytes(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """A token by itself, for lists of tokens; bytes that are no character show as U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def is_special(self, token_id: int) -> bool:
        """Whether the token has a meaning for the model and no text for the reader."""
        return token_id in self._special_ids

    def special_ids(self, words: Iterable[str]) -> dict[str, int]:
        """Those of the words that are special tokens, with their ids."""
        ids = {self._added[token_id].decode(): token_id for token_id in self._special_ids}
        return {word: ids[word] for word in words if word in ids}

    def _without_doubled_bos(self, ids: list[int], add_special_tokens: bool) -> list[int]:
        doubled = add_special_tokens and len(ids) > 1 and ids[0] == ids[1] == self.special.bos_id
        return ids[1:] if doubled else ids

    def _find_bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id]
        token = self._encoder.id_to_token(token_id)
        return b"" if token is None else self._ordinary_bytes(token)


def load_tokenizer(path: Path, config_file: Path | None = None) -> Tokenizer:
    """The tokenizer of a model directory or of a GGUF file. Raises ModelError when there is none to be read.

    `config_file` takes the place of the directory's tokenizer_config.json; a chat template in it wins over all others.
    """
    if path.is_dir():
        return _from_directory(path, config_file)
    if config_file is not None:
        raise ModelError(f"{path} brings its own tokenizer config; leave --tokenizer-config-path out")
    vocabulary = GGUFVocabulary.of(read_header(path).metadata)
    special = SpecialTokens(vocabulary.text(vocabulary.bos_id), vocabulary.bos_id, vocabulary.text(vocabulary.eos_id))
    return Tokenizer(build_encoder(vocabulary), special, vocabulary.chat_template)


def _from_directory(directory: Path, config_file: Path | None) -> Tokenizer:
    file = directory / "tokenizer.json"
    if not file.is_file():
        raise ModelError(
            f"{directory} holds no tokenizer.json; save it with "
            "transformers.AutoTokenizer.from_pretrained(...).save_pretrained(directory)"
        )
    try:
        encoder = Encoder.from_buffer(file.read_bytes())
    except ValueError as error:  # the library's only error type for files
        raise ModelError(f"{file} cannot be read as a tokenizer: {error}") from error
    encoder.no_padding()
    encoder.no_truncation()
    if config_file is None:
        config = read_json(directory / "tokenizer_config.json")
        template = _chat_template(directory, config)
        return Tokenizer(encoder, _special_tokens(encoder, config), template, _tool_template(directory, config))
    if not config_file.is_file():
        raise ModelError(f"{config_file} does not exist; --tokenizer-config-path names a tokenizer_config.json")
    config = read_json(config_file)
    template = _default_template(config.get("chat_template")) or _chat_template(directory, config)
    return Tokenizer(encoder, _special_tokens(encoder, config), template, _named_template(config, "tool_use"))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a model directory; empty when the file is not there."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ModelError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} must hold a JSON object")
    return content


def _special_tokens(encoder: Encoder, config: Mapping[str, Any]) -> SpecialTokens:
    named = {}
    for key, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            named[key] = content
    bos = named.pop("bos_token", "")
    return SpecialTokens(bos, encoder.token_to_id(bos) if bos else None, named.pop("eos_token", ""), named)


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    """The template, wherever the model keeps it; a file of its own wins over tokenizer_config.json, as in TGI."""
    if (directory / "chat_template.jinja").is_file():
        return (directory / "chat_template.jinja").read_text(encoding="utf-8")
    return _default_template(
        read_json(directory / "chat_template.json").get("chat_template", config.get("chat_template"))
    )


def _tool_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    """The template for chats with tools, of a model that has two: as files, or as a list in tokenizer_config.json."""
    if (directory / "chat_template.jinja").is_file():
        file = directory / "additional_chat_templates" / "tool_use.jinja"
        return file.read_text(encoding="utf-8") if file.is_file() else None
    if "chat_template" in read_json(directory / "chat_template.json"):
        return None
    return _named_template(config, "tool_use")


def _named_template(config: Mapping[str, Any], name: str) -> str | None:
    templates = config.get("chat_template")
    if not isinstance(templates, list):
        return None
    found = {entry["name"]: entry["template"] for entry in templates}.get(name)
    return found if isinstance(found, str) else None


def _default_template(template: Any) -> str | None:
    """A template as tokenizer_config.json may write it."""
    if isinstance(template, list):  # several templates by name; "default" is the one for plain chats
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _token_to_bytes(encoder: Encoder) -> Callable[[str], bytes]:
    """How a token of this vocabulary, as it is written there, becomes bytes inside a text.

    The tokenizer's decoder decides. Byte-level and byte-fallback alphabets are undone here, since the library decodes
    them to text, where single bytes are lost; all else is what the decoder makes of the token after another one.
    """
    decoder = encoder.decoder
    stages = _stages(json.loads(decoder.__getstate__())) if decoder is not None else []
    if "ByteLevel" in stages:
        alphabet = byte_level_alphabet()
        return lambda token: _byte_level(token, alphabet)
    prefix_length = len(_decode(encoder, [_ANCHOR]))

    def in_context(token: str) -> bytes:
        byte = _BYTE_TOKEN.fullmatch(token) if "ByteFallback" in stages else None
        if byte is not None:
            return bytes([int(byte[1], 16)])
        return _decode(encoder, [_ANCHOR, token])[prefix_length:].encode()

    return in_context


def _decode(encoder: Encoder, tokens: list[str]) -> str:
    if encoder.decoder is None:
        return " ".join(tokens)  # what the library does without a decoder
    text: str = encoder.decoder.decode(tokens)
    return text


def _stages(spec: Mapping[str, Any]) -> list[str]:
    if spec["type"] == "Sequence":
        return [stage for part in spec["decoders"] for stage in _stages(part)]
    return [spec["type"]]


def _byte_level(token: str, alphabet: Mapping[str, int]) -> bytes:
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:  # a token outside the alphabet stands for itself
        return token.encode()


def byte_level_alphabet() -> dict[str, int]:
    """GPT-2's one printable character for each byte (Radford et al. 2019), by character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
