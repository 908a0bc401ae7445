"""Text and JSON-lines files, read with errors that name the file and the line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from qspec.errors import InputError
from qspec.files import open_input

MAX_BYTES = 1 << 30  # of a file
MAX_LINE_BYTES = 1 << 20  # a tokenizer takes seconds and a quarter of a gigabyte for a mebibyte
Row = Mapping[str, Any]


class Chat(Protocol):
    """Makes text of messages {role, content}. where: file and line, for its errors."""

    def __call__(self, messages: Sequence[Row], where: str) -> str: ...


def read_documents(path: Path, field: str | None = None, chat: Chat | None = None) -> tuple[str, ...]:
    """The documents of a text file (one) or of one field of a JSON-lines file (one a row, without blank ones).

    chat: makes the text where the field holds a list of messages. Errors: InputError naming file and line: a missing,
    empty or binary file, bad JSON, a missing or non-text field.
    """
    if field is None:
        texts = ["".join(line for _, line in read_lines(path))]
    else:
        texts = [_document(row, field, path, line, chat) for line, row in read_rows(path)]
    documents = tuple(text for text in texts if text.strip())
    if not documents:
        raise InputError("the text file is empty", where=str(path), hint="give a file with text in it")
    return documents


def _document(row: Row, field: str, path: Path, line: int, chat: Chat | None) -> str:
    if chat is None or not isinstance(row.get(field), list):
        return text_field(row, field, path, line)
    messages = messages_field(row, field, path, line)
    return _whole(chat(messages, f"{path}:{line}"), field, path, line) if messages else ""


def messages_field(row: Row, name: str, path: Path, line: int) -> list[Row]:
    """row[name] as messages {role, content}."""
    messages = row.get(name)
    for one in messages if isinstance(messages, list) else [None]:
        if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ("role", "content")):
            what = f'field "{name}" must be a list of messages, each with a "role" and a "content" of text'
            raise InputError(what, where=f"{path}:{line}")
    return list(messages or ())


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """(line number, object) for every line of a JSON-lines file that is not blank."""
    for number, line in read_lines(path):
        if line.strip():
            yield number, _parsed(line.strip(), path, number)


def _parsed(line: str, path: Path, number: int) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        what = f"not valid JSON: {error.msg} (column {error.colno})"
        raise InputError(what, where=f"{path}:{number}") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets nested by the thousand
        what = "not valid JSON: a number too long, or nested too deeply"
        raise InputError(what, where=f"{path}:{number}") from None
    if not isinstance(row, dict):
        raise InputError("a line must hold one JSON object", where=f"{path}:{number}")
    return row


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, line with its end) of a UTF-8 file."""
    try:
        with open_input(path) as stream:
            if os.fstat(stream.fileno()).st_size > MAX_BYTES:
                raise OSError(errno.EOVERFLOW, f"it has more than {MAX_BYTES} bytes", str(path))
            number = 0
            while raw := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                yield number, _decoded(raw, path, number)
    except OSError as error:
        raise InputError(f"the file cannot be read: {error.strerror}", where=str(path)) from None


def _decoded(raw: bytes, path: Path, number: int) -> str:
    if len(raw) > MAX_LINE_BYTES:
        raise InputError(
            f"the line has more than {MAX_LINE_BYTES} bytes",
            where=f"{path}:{number}",
            hint="cut it into several lines, or several documents",
        )
    if b"\0" in raw:
        raise InputError("binary data where text was expected", where=f"{path}:{number}")
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text (byte {error.start + 1} of the line)"
        raise InputError(what, where=f"{path}:{number}", hint="save the file as UTF-8") from None


def text_field(row: Row, name: str, path: Path, line: int) -> str:
    """row[name] as text."""
    value = row.get(name)
    if isinstance(value, str):
        return _whole(value, name, path, line)
    if name in row:
        raise InputError(f'field "{name}" must be text, not {type(value).__name__}', where=f"{path}:{line}")
    fields = ", ".join(f'"{key}"' for key in row)[:300] or "no field at all"
    raise InputError(f'no field "{name}"', where=f"{path}:{line}", hint=f"the line has {fields}")


def list_field(row: Row, name: str, path: Path, line: int) -> list[str]:
    """row[name] as a list of at least two texts."""
    value = row.get(name)
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(one, str) for one in value):
        raise InputError(f'field "{name}" must be a list of at least two texts', where=f"{path}:{line}")
    return [_whole(one, name, path, line) for one in value]


def _whole(text: str, name: str, path: Path, line: int) -> str:
    """The text, unless it holds half of a surrogate pair: JSON can spell that, but no tokenizer takes it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f'field "{name}" is not valid Unicode', where=f"{path}:{line}") from None
    return text


def index_field(row: Row, name: str, size: int, path: Path, line: int) -> int:
    """row[name] as an index below `size`; "2" counts as 2."""
    value = row.get(name)
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if type(value) is not int or not 0 <= value < size:
        raise InputError(f'field "{name}" must be a number from 0 to {size - 1}', where=f"{path}:{line}")
    return value
