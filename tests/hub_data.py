"""Data sets as the hub's cache and `hf download --local-dir` have them, with rows that tests make up."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from qspec.data.hub import REVISIONS

Rows = Sequence[Mapping[str, Any]]


def cached(cache: Path, id: str, files: Mapping[str, Rows]) -> Path:
    """Puts files of a data set into a hub cache at the pinned revision; returns its snapshot."""
    home = cache / f"datasets--{id.replace('/', '--')}"
    snapshot = home / "snapshots" / REVISIONS[id]
    for number, (name, rows) in enumerate(files.items()):
        blob = write(home / "blobs" / f"{number:064x}", rows, name)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
    return snapshot


def write(path: Path, rows: Rows, name: str = "") -> Path:
    """Rows in the format that the file's name says (that of `path` by default)."""
    name = name or path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines))
    elif name.endswith(".zst"):
        with pyarrow.output_stream(str(path), compression="zstd") as stream:
            stream.write(lines)
    else:
        path.write_bytes(lines)
    return path


def texts(*documents: str) -> Rows:
    """Rows of a text data set."""
    return [{"text": document} for document in documents]
