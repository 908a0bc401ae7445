"""Where a search writes to, looked at before it works for hours: nothing but its own earlier results is replaced."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from qspec.artifact import require_outside_artifacts
from qspec.errors import InputError
from qspec.files import read_input, require_file, require_folder

FOUND = "Found by `qspec search` from"  # begins the comments of a found recipe
EVIDENCE = {"recipe", "layout", "trials"}  # keys that the evidence beside it has


def require_places(recipes: Iterable[Path], folder: Path) -> None:
    """Raises InputError where a recipe to be written, its evidence or the report cannot be, or would replace a file
    that no search wrote.

    folder: of results and report.
    """
    require_folder(folder)
    for path in recipes:
        evidence = path.with_suffix(".json")
        for file in (path, evidence):
            require_file(file)
            require_outside_artifacts(file)
        if path.exists() and f"\n# {FOUND} " not in read_input(path).decode(errors="replace")[:1000]:
            raise _foreign(path)
        if evidence.exists() and not _is_evidence(evidence):
            raise _foreign(evidence)


def _is_evidence(path: Path) -> bool:
    try:
        content = json.loads(read_input(path))
    except (ValueError, RecursionError, OSError):
        return False
    return isinstance(content, dict) and set(content) >= EVIDENCE


def _foreign(path: Path) -> InputError:
    return InputError(
        "the found recipe would replace a file that no search wrote",
        where=str(path),
        hint="choose another --out file, or move this one away",
    )
