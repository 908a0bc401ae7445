"""Text, JSON, JSON-lines and Parquet files, read with errors that name the file and the line, or the row."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from qspec.data.hub import needs_extra
from qspec.errors import InputError
from qspec.files import open_input

MAX_BYTES = 1 << 30  # of a file
MAX_LINE_BYTES = 1 << 20  # a tokenizer takes seconds and a quarter of a gigabyte for a mebibyte
Row = Mapping[str, Any]


class Chat(Protocol):
    """Makes text of messages {role, content}. where: file and line, for its errors."""

    def __call__(self, messages: Sequence[Row], where: str) -> str: ...


def read_documents(path: Path, field: str | None = None, chat: Chat | None = None) -> tuple[str, ...]:
    """The documents of a text file (one) or of one field of a file of rows (one a row, without blank ones).

    chat: makes the text where the field holds a list of messages. Errors: InputError naming file and line: a missing,
    empty or binary file, bad JSON, a missing or non-text field.
    """
    if field is None and path.suffix == ".parquet":
        what = "a Parquet file holds rows, and no field of them is named"
        raise InputError(what, where=str(path), hint='name the one that is text: file("PATH", field = "text")')
    if field is None:
        texts = ["".join(line for _, line in read_lines(path))]
    else:
        texts = [_document(row, field, path, line, chat) for line, row in read_rows(path)]
    documents = tuple(text for text in texts if text.strip())
    if not documents:
        raise no_document(path)
    return documents


def no_document(path: Path) -> InputError:
    """The error for a file without text."""
    return InputError("the text file is empty", where=str(path), hint="give a file with text in it")


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


def read_rows(path: Path, longest: int = MAX_LINE_BYTES) -> Iterator[tuple[int, Row]]:
    """(line number, object) for every line of a JSON-lines file that is not blank; (row number, object) of a Parquet
    file and of a .json file that is one list. longest: bytes that a line may have."""
    if path.suffix == ".parquet":
        yield from enumerate(_parquet(path), 1)
    elif path.suffix == ".json" and (text := "".join(line for _, line in read_lines(path))).lstrip()[:1] == "[":
        for number, row in enumerate(_parsed(text, str(path)), 1):
            yield number, _object(row, "a row of the list must be a JSON object", f"{path}:{number}")
    else:
        for number, line in read_lines(path, longest):
            if line.strip():
                where = f"{path}:{number}"
                yield number, _object(_parsed(line.strip(), where), "a line must hold one JSON object", where)


def _parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file. Errors: InputError where it is none, and without the package that reads it."""
    parquet = _arrow(path, "parquet")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own are subclasses
        raise InputError(f"the file cannot be read: {_first_line(error)}", where=str(path)) from None


def _arrow(path: Path, module: str) -> Any:
    """A module of pyarrow, which the package datasets brings."""
    try:
        return import_module(f"pyarrow.{module}")
    except ImportError as error:
        raise needs_extra(f"reading {path.name}", "pyarrow") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        what = f"not valid JSON: {error.msg} (column {error.colno})"
        raise InputError(what, where=where) from None
    except (ValueError, RecursionError):  # a number of thousands of digits, brackets nested by the thousand
        raise InputError("not valid JSON: a number too long, or nested too deeply", where=where) from None


def _object(row: Any, what: str, where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(what, where=where)
    return row


def read_lines(path: Path, longest: int = MAX_LINE_BYTES) -> Iterator[tuple[int, str]]:
    """(line number, line with its end) of a UTF-8 file, packed (.gz, .zst) or not. longest: bytes that a line may
    have."""
    try:
        with open_input(path) as packed:
            if os.fstat(packed.fileno()).st_size > MAX_BYTES:
                raise OSError(errno.EOVERFLOW, f"it has more than {MAX_BYTES} bytes", str(path))
            stream, number = _unpacked(packed, path), 0
            while raw := stream.readline(longest + 1):
                number += 1
                yield number, _decoded(raw, path, number, longest)
    except (OSError, EOFError, zlib.error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
        raise InputError(f"the file cannot be read: {why}", where=str(path)) from None


def _unpacked(stream: BinaryIO, path: Path) -> BinaryIO | gzip.GzipFile | io.BufferedReader:
    if path.suffix == ".gz":
        return gzip.GzipFile(fileobj=stream)
    if path.suffix == ".zst":
        return io.BufferedReader(_arrow(path, "lib").CompressedInputStream(stream, "zstd"))
    return stream


def _decoded(raw: bytes, path: Path, number: int, longest: int) -> str:
    if len(raw) > longest:
        raise InputError(
            f"the line has more than {longest} bytes",
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
