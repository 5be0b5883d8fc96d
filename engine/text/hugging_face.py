"""Hugging Face's tokenizer.json, run by the `tokenizers` library.

Two kinds are read. Byte-level ones (GPT-2's alphabet: Llama 3, Qwen, SmolLM) write bytes as printable
characters. Those that come from SentencePiece (Llama 2, Mistral) write "▁" for a space and "<0xNN>" for a
byte that no token covers. In both every token stands for bytes of its own, wherever it is.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engine.text.files import CONFIG, HUGGING_FACE, read_json, token_spelling
from engine.text.tokenizer import Tokenizer, TokenizerError, byte_table, check_ids

if TYPE_CHECKING:  # imported where it is used: nanochat checkpoints do not need it
    import tokenizers

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class HuggingFaceTokenizer(Tokenizer):
    """Over backends that have been built without their special tokens, so that no text can reach their ids;
    `specials` gives them back for `encode_special`.

    inside: for text that does not begin the input, where that makes a difference. hidden: the ids that have
    no text for a reader; the other added tokens (`<think>`) are special in what is encoded only.
    """

    def __init__(
        self,
        backend: "tokenizers.Tokenizer",
        inside: "tokenizers.Tokenizer | None",
        tokens: list[tuple[bytes, int]],
        specials: Mapping[str, int],
        hidden: frozenset[int],
        bos: str,
        eos: str | None,
    ) -> None:
        check_ids("the special tokens", specials, str)  # type: ignore[arg-type]
        super().__init__(byte_table(tokens, specials), specials, bos, eos)
        self.special_ids = hidden
        self._backend = backend
        self._inside = inside or backend

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _encode_inside(self, text: str) -> list[int]:
        ids: list[int] = self._inside.encode(text, add_special_tokens=False).ids
        return ids


def load_hugging_face(folder: Path) -> HuggingFaceTokenizer:
    """The tokenizer.json in `folder`, with what the files beside it say of BOS and EOS. Raises
    TokenizerError.
    """
    data = read_json(folder / HUGGING_FACE)
    kinds = set(_types(data.get("decoder"), "decoders"))
    if "ByteLevel" not in kinds and "ByteFallback" not in kinds:
        raise TokenizerError(
            "only byte-level tokenizers, and those with a byte fallback, are supported; "
            "this one has another decoder"
        )
    specials, hidden = _added_tokens(data.get("added_tokens"))
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    bos, eos = _bos(folder, config, specials), token_spelling(config.get("eos_token")) or "<|assistant_end|>"
    adds_bos = _adds_bos(data, config, bos)
    _strip(data, specials)
    backend = _backend(data)
    inside = _backend(data) if _begin_anywhere(data.get("pre_tokenizer")) else None
    spelled = _bytes_of_printable if "ByteLevel" in kinds else _bytes_of_pieces
    tokens = spelled(backend.get_vocab())
    tokenizer = HuggingFaceTokenizer(backend, inside, tokens, specials, hidden, bos, eos)
    tokenizer.adds_bos = adds_bos
    return tokenizer


def _strip(data: dict[str, object], specials: Mapping[str, int]) -> None:
    """Takes out what would put special ids into encoded text."""
    data["added_tokens"] = []
    # It would add BOS and EOS, which is the chat template's part here, and it names tokens that are gone now.
    data["post_processor"] = None
    data["truncation"] = data["padding"] = None
    model = data.get("model")
    if isinstance(model, dict) and isinstance(model.get("vocab"), dict):
        model["vocab"] = {token: id for token, id in model["vocab"].items() if token not in specials}
        if model.get("unk_token") in specials:
            model["unk_token"] = None


def _backend(data: Mapping[str, object]) -> "tokenizers.Tokenizer":
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"not a readable tokenizer: {error}") from error


def _types(part: object, nested: str) -> Iterator[object]:
    if isinstance(part, dict):
        yield part.get("type")
        inner = part.get(nested)
        for entry in inner if isinstance(inner, list) else []:
            yield from _types(entry, nested)


def _begin_anywhere(part: object) -> bool:
    """Turns off the space that a Metaspace puts before the first word of the input; whether there was one."""
    if not isinstance(part, dict):
        return False
    if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first":
        part["prepend_scheme"] = "never"
        return True
    inner = part.get("pretokenizers")
    found = [_begin_anywhere(entry) for entry in inner] if isinstance(inner, list) else []
    return True in found


# ---- special tokens


def _added_tokens(added: object) -> tuple[dict[str, int], frozenset[int]]:
    """Every added token by spelling, and the ids of those that are flagged as special.

    All are kept out of what is encoded, whatever their flag says: `<think>` typed by a user must not become a
    marker either.
    """
    specials: dict[str, int] = {}
    hidden: set[int] = set()
    for entry in added if isinstance(added, list) else []:
        spelling = entry.get("content") if isinstance(entry, dict) else None
        id = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(spelling, str) or not isinstance(id, int):
            raise TokenizerError(f"added_tokens has the entry {entry!r}")
        specials[spelling] = id
        if entry.get("special", True):
            hidden.add(id)
    return specials, frozenset(hidden)


def _bos(folder: Path, config: Mapping[str, object], specials: Mapping[str, int]) -> str:
    """The spelling of BOS. A model that has none (Qwen) names one by its id all the same, or ends text with
    one.
    """
    named = token_spelling(config.get("bos_token"))
    if named is not None:
        return named
    spellings = {id: spelling for spelling, id in specials.items()}
    for file in ("generation_config.json", "config.json"):
        id = read_json(folder / file).get("bos_token_id") if (folder / file).is_file() else None
        if isinstance(id, int) and id in spellings:
            return spellings[id]
    for name in ("<|bos|>", "<|endoftext|>", token_spelling(config.get("eos_token"))):
        if name is not None and name in specials:
            return name
    return "<|bos|>"


def _adds_bos(data: Mapping[str, object], config: Mapping[str, object], bos: str) -> bool:
    """Whether plain text gets BOS in front, as transformers has it; nanochat's always does."""
    if bos == "<|bos|>":
        return True
    asked = config.get("add_bos_token")
    return (
        asked
        if isinstance(asked, bool)
        else f'"{bos}"' in json.dumps(data.get("post_processor"), ensure_ascii=False)
    )


# ---- what tokens stand for


def _bytes_of_printable(vocabulary: Mapping[str, int]) -> list[tuple[bytes, int]]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, other bytes for U+0100 onwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    to_byte = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    tokens: list[tuple[bytes, int]] = []
    for token, id in vocabulary.items():
        try:
            tokens.append((bytes([to_byte[character] for character in token]), id))
        except KeyError as error:
            raise TokenizerError(f"the token {token!r} is not in the byte-level alphabet") from error
    return tokens


def _bytes_of_pieces(vocabulary: Mapping[str, int]) -> list[tuple[bytes, int]]:
    tokens: list[tuple[bytes, int]] = []
    for token, id in vocabulary.items():
        byte = _BYTE.fullmatch(token)
        tokens.append((bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode(), id))
    return tokens
