"""The tokenizer's files: which they are, and how tokenizer.json is made where there are older ones. No torch.

A published folder has tokenizer.json, or (Dream) the vocabulary and merges of a byte-level BPE, a tokenizer_config.json
that names a class in the checkpoint's own code, which is never run, and its added tokens with their ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qspec.errors import InputError
from qspec.files import read_input
from qspec.models.config import MAX_CONFIG_BYTES, read_json

FILE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
TEMPLATES = "additional_chat_templates"  # a folder, as transformers writes several templates
FILES = (
    FILE,
    CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
MAX_BYTES = 64 << 20  # Dream's vocab.json has 3 MB, a vocabulary of 262,144 words in tokenizer.json 33 MB
QWEN2_WORDS = (  # how Qwen2, and Dream after it, cut text into words before they are merged
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_CLASSES = ("DreamTokenizer", "Qwen2Tokenizer", "Qwen2TokenizerFast")
FAST_CLASS = "PreTrainedTokenizerFast"  # which every transformers has, and which reads tokenizer.json alone
SPECIAL = ("mask", "eos", "pad", "bos")
OPTIONS = ("single_word", "lstrip", "rstrip", "normalized", "special")  # of an added token


def tokenizer_files(folder: Path) -> tuple[str, ...]:
    """The files of a folder that decide how text becomes tokens, chat templates among them, by their names in it."""
    templates = sorted(path.name for path in (folder / TEMPLATES).glob("*.jinja") if path.is_file())
    return (*(name for name in FILES if (folder / name).is_file()), *(f"{TEMPLATES}/{name}" for name in templates))


def tokenizer_contents(folder: Path) -> dict[str, bytes]:
    """The tokenizer as an artifact holds it: `tokenizer_files`, and a tokenizer.json where there is none.

    tokenizer_config.json then names a class that reads it; what leads to code that does not come along is left out.
    Raises InputError where no tokenizer.json can be made.
    """
    contents = {name: _content(folder / name) for name in tokenizer_files(folder)}
    config = _config(folder)
    if FILE in contents and "auto_map" not in config:
        return contents
    if FILE not in contents:
        contents[FILE] = _text(byte_level_bpe(folder)).encode()
    named = {key: value for key, value in config.items() if key != "auto_map"} | {"tokenizer_class": FAST_CLASS}
    contents[CONFIG] = _text(named).encode()
    return contents


def _content(path: Path) -> bytes:
    try:
        return read_input(path, MAX_BYTES)
    except OSError as error:
        raise InputError(f"{path.name} cannot be read: {error.strerror}", where=str(path)) from error


@contextmanager
def readable(folder: Path) -> Iterator[Path]:
    """A folder with a tokenizer.json: this one, or for a while one that has it made."""
    if (folder / FILE).is_file():
        yield folder
        return
    with TemporaryDirectory() as made:
        for name, content in tokenizer_contents(folder).items():
            path = Path(made) / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        yield Path(made)


def byte_level_bpe(folder: Path) -> dict[str, Any]:
    """The tokenizer.json of vocab.json, merges.txt and the added tokens, for classes that are Qwen2's.

    Text is normalized to NFC, cut by `QWEN2_WORDS`, and each word's bytes are merged in the order of merges.txt. An
    added token has the id that its file gives it: it stands in the vocabulary, so that none is counted on from its end.
    Raises InputError for a class of another kind, files that are missing or contradict each other, and special tokens
    that are not those of config.json.
    """
    config = _config(folder)
    kind = config.get("tokenizer_class")
    if not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise InputError(f"{FILE} is missing", where=str(folder), hint="copy it from the original model")
    if kind not in QWEN2_CLASSES:
        raise InputError(
            f"{FILE} is missing, and how a {str(kind)[:60]} cuts words is not known here",
            where=str(folder / CONFIG),
            hint=f"make it with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER); "
            f"known are {', '.join(QWEN2_CLASSES)}",
        )
    words = _words(folder / "vocab.json")
    added = _added(folder, config)
    _check_added(folder, words, added)
    _check_special(folder, config, words | {token: entry["id"] for token, entry in added.items()})
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added.values(), key=lambda entry: int(entry["id"])),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": words | {token: entry["id"] for token, entry in added.items()},
            "merges": _merges(folder / "merges.txt", words),
        },
    }


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / CONFIG, MAX_BYTES) if (folder / CONFIG).is_file() else {}


def _words(path: Path) -> dict[str, int]:
    """Word -> id, each id once."""
    words = read_json(path, MAX_BYTES)
    seen: dict[int, str] = {}
    for word, token in words.items():
        if type(token) is not int or token < 0:
            raise InputError(f"vocab.json gives {word[:60]!r} the id {str(token)[:60]}", where=str(path))
        if token in seen:
            raise InputError(f"vocab.json gives {seen[token][:60]!r} and {word[:60]!r} the id {token}", where=str(path))
        seen[token] = word
    return words


def _merges(path: Path, words: Mapping[str, int]) -> list[list[str]]:
    """The pairs of merges.txt in their order, without its first line (#version) and blank ones."""
    pairs = []
    try:
        text = read_input(path, MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise InputError(f"merges.txt cannot be read: {error.strerror}", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"merges.txt cannot be read: {error}", where=str(path)) from error
    for number, line in enumerate(text.split("\n"), 1):
        pair = line.strip().split()
        if not pair or (number == 1 and line.startswith("#version")):
            continue
        unknown = [word for word in (*pair, "".join(pair)) if word not in words]
        if len(pair) != 2 or unknown:
            problem = f"{unknown[0][:60]!r} is not in vocab.json" if unknown else "a line holds two words"
            hint = "vocab.json and merges.txt are of different tokenizers, or one is cut short"
            raise InputError(f"merges.txt: {problem}", where=f"{path}:{number}", hint=hint)
        pairs.append(pair)
    return pairs


def _added(folder: Path, config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Text -> added token as tokenizer.json has it, from tokenizer_config.json and added_tokens.json."""
    special = _special_texts(folder, config)
    found: dict[str, dict[str, Any]] = {}
    decoder = config.get("added_tokens_decoder")
    for number, entry in (decoder if isinstance(decoder, Mapping) else {}).items():
        if not isinstance(entry, Mapping) or not isinstance(entry.get("content"), str) or not number.isdecimal():
            where = f"{folder / CONFIG}: added_tokens_decoder"
            raise InputError(f"the added token {number[:20]!r} has no text, or no number", where=where)
        options = {name: bool(entry.get(name, False)) for name in OPTIONS}
        found[entry["content"]] = {"id": int(number), "content": entry["content"], **options}
    path = folder / "added_tokens.json"
    for text, token in (read_json(path, MAX_CONFIG_BYTES) if path.is_file() else {}).items():
        if type(token) is not int or token < 0 or found.get(text, {"id": token})["id"] != token:
            what = f"added_tokens.json gives {text[:60]!r} the id {str(token)[:60]}"
            hint = f"{CONFIG} gives it {found[text]['id']}" if text in found else "an id is a whole number"
            raise InputError(what, where=str(path), hint=hint)
        options = dict.fromkeys(OPTIONS, False) | {"special": text in special}
        found.setdefault(text, {"id": token, "content": text, **options})
    return found


def _special_texts(folder: Path, config: Mapping[str, Any]) -> set[str]:
    """Every text that tokenizer_config.json or special_tokens_map.json gives a special role."""
    path = folder / "special_tokens_map.json"
    tables = (config, read_json(path, MAX_CONFIG_BYTES) if path.is_file() else {})
    texts = [_token_text(value) for table in tables for key, value in table.items() if key.endswith("_token")]
    for table in tables:
        more = table.get("additional_special_tokens")
        texts += [_token_text(value) for value in more] if isinstance(more, list) else []
    return {text for text in texts if text is not None}


def _token_text(value: object) -> str | None:
    """A special token is written as its text, or as an object with it."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _check_added(folder: Path, words: Mapping[str, int], added: Mapping[str, Mapping[str, Any]]) -> None:
    taken = {token: word for word, token in words.items()}
    for text, entry in added.items():
        if taken.setdefault(entry["id"], text) != text or words.get(text, entry["id"]) != entry["id"]:
            other = taken[entry["id"]]
            what = f"the added token {text[:60]!r} has the id {entry['id']}, "
            what += f"and so has {other[:60]!r}" if other != text else f"in vocab.json {words[text]}"
            raise InputError(what, where=str(folder), hint="the tokenizer's files are of different models")


def _check_special(folder: Path, tokenizer: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    """Special tokens exist; the mask, which nothing works without, is config.json's own."""
    path = folder / "config.json"
    model = read_json(path, MAX_CONFIG_BYTES) if path.is_file() else {}
    known = set(ids.values())
    for name in SPECIAL:
        text, wanted = _token_text(tokenizer.get(f"{name}_token")), model.get(f"{name}_token_id")
        if text is not None and text not in ids:
            what = f"the {name} token {text[:60]!r} is neither in vocab.json nor an added token"
            raise InputError(what, where=str(folder / CONFIG), hint="copy added_tokens.json from the original model")
        if type(wanted) is int and wanted not in known:
            what = f"config.json: {name}_token_id is {wanted}, which no word of the tokenizer has"
            raise InputError(what, where=str(path), hint="the tokenizer's files are of another model")
        if name == "mask" and text is not None and type(wanted) is int and ids[text] != wanted:
            what = f"the mask token {text[:60]!r} is {ids[text]} in the tokenizer, and {wanted} in config.json"
            raise InputError(what, where=str(path), hint="the tokenizer's files are of another model")


def _text(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
