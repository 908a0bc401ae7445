"""Finds a checkpoint in a folder or in the hub's cache; downloads only when asked to. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from qspec import resources
from qspec.errors import InputError, MachineError
from qspec.models.forms import check_file
from qspec.models.shards import weight_files

STANDIN = re.compile(r"tiny-[a-z0-9]+", re.ASCII)
HUB_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w./-]*", re.ASCII)
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")  # never pickles, never code


def is_name(text: str) -> bool:
    """Whether this can be a stand-in's name or a hub id."""
    return STANDIN.fullmatch(text) is not None or HUB_ID.fullmatch(text) is not None


def checkpoint_locate(
    id_or_path: str | Path, revision: str | None = "main", download: bool = False, weights: bool = True
) -> Path | None:
    """The folder of a checkpoint, or None where this machine does not have it.

    id_or_path: a folder, the name of a bundled stand-in such as tiny-llada, or a hub id `owner/name` at `revision`.
    weights False accepts a cache that holds config.json alone. Errors: InputError for a path that is no folder,
    a text that is none of these, and an id that the hub does not know; MachineError where a download fails.
    """
    path = Path(id_or_path)
    if str(id_or_path) and path.is_dir():
        return path
    if str(id_or_path) and path.is_file():
        check_file(path)
    if STANDIN.fullmatch(str(id_or_path)) and (bundled := resources.standins() / id_or_path).is_dir():
        return bundled
    if isinstance(id_or_path, Path) or not HUB_ID.fullmatch(id_or_path):
        raise InputError(
            f"{str(id_or_path)!r} is neither a folder nor a hub id such as GSAI-ML/LLaDA-8B-Instruct",
            where=str(id_or_path),
            hint="give the folder that holds config.json and *.safetensors",
        )
    if revision is not None and not REVISION.fullmatch(revision):
        raise InputError(f"{revision!r} is not a revision", where=id_or_path, hint="give a branch, tag or commit")
    if download:
        return _download(id_or_path, revision)
    return _cached(id_or_path, revision, weights)


def _cached(id: str, revision: str | None, weights: bool) -> Path | None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = _snapshot(id, revision, WANTED if weights else ("config.json",), local_files_only=True)
    except LocalEntryNotFoundError:
        return None
    needed = (folder / "config.json", *(weight_files(folder) if weights else ()))
    return folder if all(file.is_file() for file in needed) else None


def _download(id: str, revision: str | None) -> Path:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{id} at {revision or 'main'}"
    try:
        return _snapshot(id, revision, WANTED, local_files_only=False)
    except GatedRepoError as error:
        hint = "accept its terms on the hub and log in"
        raise InputError(f"{id} is gated on the hub", where=where, hint=hint) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        hint = "check the id and the revision"
        raise InputError(f"the hub has no model {where}", where=where, hint=hint) from error
    except Exception as error:  # the hub's transport library, and with it the errors, differ by version
        hint = "check the network, or give a local folder with --model"
        what = f"{id} could not be downloaded: {_first_line(error)}"
        raise MachineError(what, where=where, hint=hint) from error


def _snapshot(id: str, revision: str | None, files: tuple[str, ...], **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(id, revision=revision, allow_patterns=list(files), **options))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
