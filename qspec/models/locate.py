"""Finds a checkpoint in a folder or in the hub's cache; downloads only when asked to. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from qspec import resources
from qspec.errors import InputError, MachineError
from qspec.models.forms import check_file
from qspec.models.shards import weight_files

STANDIN = re.compile(r"tiny-[a-z0-9_]+", re.ASCII)
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
        return hub_snapshot(id_or_path, revision, WANTED, download=True)
    return _cached(id_or_path, revision, weights)


def _cached(id: str, revision: str | None, weights: bool) -> Path | None:
    folder = hub_snapshot(id, revision, WANTED if weights else ("config.json",), download=False)
    if folder is None:
        return None
    needed = (folder / "config.json", *(weight_files(folder) if weights else ()))
    return folder if all(file.is_file() for file in needed) else None


def hub_snapshot(
    id: str,
    revision: str | None,
    files: Sequence[str],
    *,
    kind: Literal["model", "dataset"] = "model",
    download: bool,
) -> Path | None:
    """The folder of a repository of the hub in the local cache; None where nothing of that revision is there.

    files: patterns of what is wanted; without `download` some may be missing. Errors: with `download`, InputError for
    a repository that the hub does not have or does not give, MachineError where the download fails.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where = f"{id} at {revision or 'main'}"
    options: dict[str, Any] = {"repo_type": kind, "allow_patterns": list(files), "local_files_only": not download}
    try:
        return Path(snapshot_download(id, revision=revision, **options))
    except LocalEntryNotFoundError as error:
        if download:  # the cache is looked through where the hub was not reached
            raise _no_download(id, where, error) from error
        return None
    except GatedRepoError as error:
        hint = "accept its terms on the hub and log in"
        raise InputError(f"{id} is gated on the hub", where=where, hint=hint) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        hint = "check the id and the revision"
        raise InputError(f"the hub has no {kind} {where}", where=where, hint=hint) from error
    except Exception as error:  # the hub's transport library, and with it the errors, differ by version
        raise _no_download(id, where, error) from error


def _no_download(id: str, where: str, error: Exception) -> MachineError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    what = f"{id} could not be downloaded: {lines[0]}"
    return MachineError(what, where=where, hint="check the network, or give a local folder")
