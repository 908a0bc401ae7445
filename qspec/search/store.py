"""Results of jobs on disk, each whole or absent, under the content hash of everything that it depends on.

What is read is checked by the caller (`jobs.fits`): files may have been damaged since.
"""

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
        """The result, or None where it was not computed yet; empty where its file holds no JSON object.

        Raises InputError where the file cannot be read at all.
        """
        path = self.path(key)
        try:
            content = json.loads(read_input(path))
        except FileNotFoundError:
            return None
        except OSError as error:
            hint = "remove it; it is computed again"
            raise InputError(f"a kept result cannot be read: {error.strerror}", where=str(path), hint=hint) from error
        except (ValueError, RecursionError):
            content = None
        return content if isinstance(content, dict) else {}

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def put(self, key: str, result: Result) -> Result:
        """Keeps it, and returns it as a later run will read it."""
        text = json.dumps(result, sort_keys=True, allow_nan=False, indent=1) + "\n"
        write_whole(self.path(key), text)
        kept: Result = json.loads(text)
        return kept
