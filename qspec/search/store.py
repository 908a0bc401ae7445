"""Results of jobs on disk, each whole or absent, under the content hash of everything that it depends on."""

from __future__ import annotations

import json
from pathlib import Path

from qspec.errors import InputError
from qspec.files import read_input, write_whole
from qspec.search.jobs import Result


class Store:
    """A folder with one JSON file for each result."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, key: str) -> Result | None:
        """The result, or None where it was not computed yet. Raises InputError where its file is corrupt."""
        path = self.folder / f"{key}.json"
        try:
            content = json.loads(read_input(path))
        except FileNotFoundError:
            return None
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise InputError(
                "a kept result cannot be read", where=str(path), hint="remove the file; it is computed again"
            )
        return content

    def put(self, key: str, result: Result) -> Result:
        """Keeps it, and returns it as a later run will read it."""
        text = json.dumps(result, sort_keys=True, allow_nan=False, indent=1) + "\n"
        write_whole(self.folder / f"{key}.json", text)
        kept: Result = json.loads(text)
        return kept
