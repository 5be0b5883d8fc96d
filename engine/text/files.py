"""Tokenizer files: nanochat's pickle, our own two text files, Hugging Face's tokenizer.json.

A pickle can run code when it is read. Ours is read by an unpickler that knows one name, the class that
nanochat's tokenizer.pkl mentions, and gives it a stand-in that only stores what the file says.
"""

import base64
import binascii
import io
import json
import pickle
from pathlib import Path

from engine.text.tokenizer import (
    BytePairTokenizer,
    Tokenizer,
    TokenizerError,
)

PICKLE = "tokenizer.pkl"
RANKS = "tokenizer.tiktoken"
CONFIG = "tokenizer_config.json"
HUGGING_FACE = "tokenizer.json"
MAX_FILE_BYTES = 64 * 2**20


def has_tokenizer(folder: Path) -> bool:
    """Whether `folder` itself holds tokenizer files of a known kind."""
    return any((folder / name).is_file() for name in (RANKS, PICKLE, HUGGING_FACE))


def load_tokenizer(folder: Path | str) -> Tokenizer:
    """The tokenizer in `folder`, or in its `tokenizer` folder (a nanochat base directory).

    Looks for `tokenizer.tiktoken` with `tokenizer_config.json`, then `tokenizer.pkl`, then `tokenizer.json`.
    Raises TokenizerError, which names the file and what is wrong with it.
    """
    folder = Path(folder)
    if not has_tokenizer(folder) and has_tokenizer(folder / "tokenizer"):
        folder = folder / "tokenizer"
    for name, load in ((RANKS, _load_ranks), (PICKLE, _load_pickle), (HUGGING_FACE, _load_hugging_face)):
        if (folder / name).is_file():
            try:
                return load(folder)
            except TokenizerError as error:
                raise TokenizerError(f"{folder / name}: {error}") from error
    raise TokenizerError(f"no tokenizer in {folder}: it has none of {RANKS}, {PICKLE} and {HUGGING_FACE}")


def save_tokenizer(folder: Path | str, tokenizer: BytePairTokenizer) -> None:
    """Writes `tokenizer.tiktoken` (one "base64 rank" line per token) and `tokenizer_config.json`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{base64.b64encode(token).decode()} {rank}\n"
        for token, rank in sorted(tokenizer.ranks.items(), key=lambda item: item[1])
    ]
    (folder / RANKS).write_text("".join(lines), encoding="ascii")
    config = {"pattern": tokenizer.pattern, "special_tokens": tokenizer.special_tokens}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a tokenizer's folder. Raises TokenizerError."""
    try:
        value: object = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path.name} is not a JSON object")
    return value


def token_spelling(value: object) -> str | None:
    """A token in tokenizer_config.json is its spelling, or an object with the spelling in `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenizerError(f"{path.name} is larger than {MAX_FILE_BYTES // 2**20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read {path.name}: {error.strerror}") from error


def _ids(what: str, value: object, key: type) -> dict[object, int]:
    if not isinstance(value, dict):
        raise TokenizerError(f"{what} is missing or no table")
    for token, id in value.items():
        if not isinstance(token, key) or not isinstance(id, int):
            raise TokenizerError(f"{what} has the entry {token!r}: {id!r}")
    return value


# ---- our own format


def _load_ranks(folder: Path) -> Tokenizer:
    config = read_json(folder / CONFIG)
    pattern = config.get("pattern")
    if not isinstance(pattern, str):
        raise TokenizerError(f"{CONFIG} has no split pattern")
    specials = _ids("special_tokens", config.get("special_tokens"), str)
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_read(folder / RANKS).splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(f"line {number} is not a base64 token and its rank") from error
    return BytePairTokenizer(ranks, specials, pattern)  # type: ignore[arg-type]


# ---- nanochat's pickle


class _Encoding:
    """Stands in for tiktoken.core.Encoding while its pickle is read."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _Encoding
        raise TokenizerError(f"the pickle asks for {module}.{name}; only tiktoken.core.Encoding is read")


def _load_pickle(folder: Path) -> Tokenizer:
    try:
        encoding: object = _Unpickler(io.BytesIO(_read(folder / PICKLE))).load()
    except TokenizerError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise TokenizerError(f"not a readable pickle ({type(error).__name__}: {error})") from error
    state = encoding.state if isinstance(encoding, _Encoding) else None
    if not isinstance(state, dict):
        raise TokenizerError("the pickle does not hold a tiktoken encoding with its ranks")
    pattern = state.get("pat_str")
    if not isinstance(pattern, str):
        raise TokenizerError("the encoding has no split pattern")
    ranks = _ids("mergeable_ranks", state.get("mergeable_ranks"), bytes)
    specials = _ids("special_tokens", state.get("special_tokens"), str)
    return BytePairTokenizer(ranks, specials, pattern)  # type: ignore[arg-type]


# ---- Hugging Face


def _load_hugging_face(folder: Path) -> Tokenizer:
    from engine.text.hugging_face import (
        load_hugging_face,
    )  # loads a library that nanochat's files do not need

    return load_hugging_face(folder)
