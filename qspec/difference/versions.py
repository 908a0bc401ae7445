"""OLD and NEW as they are given: a recipe, a recipe in git, an artifact or a report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qspec import passes
from qspec.diagnostics import Diagnostic, RecipeError, Source
from qspec.difference.git import read_blob, split
from qspec.errors import InputError
from qspec.files import MAX_BYTES as MAX_REPORT
from qspec.language import LoadedRecipe, load_recipe, load_source
from qspec.language.merge import Read
from qspec.language.parser import MAX_BYTES, decode
from qspec.language.spec import Spec
from qspec.language.versions import upgraded
from qspec.manifest import MANIFEST, Manifest
from qspec.models.locate import is_name
from qspec.models.registry import FAMILIES
from qspec.planned import Config, find_config

if TYPE_CHECKING:
    from qspec.evaluate.results import Metric

REPORT = Path("report") / "report.json"


@dataclass(frozen=True)
class Version:
    """One of the two. config: of the model that it is about, None where it is not here. measured: gives what was
    measured, None where nothing was."""

    name: str
    loaded: LoadedRecipe
    config: Config | None
    measured: Callable[[], tuple[Metric, ...]] | None = None

    @property
    def spec(self) -> Spec:
        return self.loaded.spec


def read_version(text: str, settings: Mapping[str, str]) -> Version:
    """Errors: RecipeError for a recipe with errors; InputError for what is not there, or is nothing of these."""
    path = Path(text)
    try:
        folder, exists = path.is_dir(), os.path.lexists(path)
    except (OSError, ValueError) as error:
        raise InputError(f"this is no path: {error}", where=text) from None
    if "\0" in text:
        raise InputError("this is no path: it holds a null byte", where=text)
    place = None if exists else split(text)
    if folder:
        return _artifact(path, text)
    if path.suffix == ".json":
        return _report(_content(text, place), text)
    if place is not None:
        return _recipe_in_git(*place, settings)
    return _version(load_recipe(path, passes.available(), settings, FAMILIES))


def version_of(source: Source, problems: list[Diagnostic], read: Read, settings: Mapping[str, str]) -> Version:
    """A recipe's text, as `decode` gives it; `read` reads its bases. Raises RecipeError where it has errors.

    Of an older version of the language it is what `qspec fix` makes of it: nobody can upgrade what git has.
    """

    def read_upgraded(target: Path) -> tuple[Source, list[Diagnostic]]:
        base, wrong = read(target)
        return upgraded(base), wrong

    if problems:
        raise RecipeError(problems, {source.path: source})
    return _version(load_source(upgraded(source), passes.available(), settings, FAMILIES, read_upgraded))


def _version(loaded: LoadedRecipe) -> Version:
    return Version(loaded.spec.source, loaded, _own_config(loaded.spec.model.id, loaded.spec.model.revision))


def _recipe_in_git(revision: str, path: str, settings: Mapping[str, str]) -> Version:
    """A recipe as a revision has it, with its bases of the same revision."""

    def read(target: Path) -> tuple[Source, list[Diagnostic]]:
        """A base; `target` begins with the revision unless the recipe lies at the top."""
        place = str(target).removeprefix(f"{revision}:")
        try:
            return decode(read_blob(revision, place, MAX_BYTES), f"{revision}:{place}")
        except InputError as error:
            raise FileNotFoundError(0, error.what) from None

    return version_of(*decode(read_blob(revision, path, MAX_BYTES), f"{revision}:{path}"), read, settings)


def configs(old: Version, new: Version, model: str | None) -> tuple[Config, Config] | None:
    """The models whose modules are compared: `model`, or each version's own, or the other one's; None where none of
    them is here."""
    if model is not None:
        config = find_config(model)
        if config is None:
            raise InputError(f"there is no config.json of {model!r} on this machine", hint="give a folder")
        return config, config
    own, other = _config(old, new), _config(new, old)
    if own is None or other is None:
        return None
    fits = own.family.name in old.spec.families and other.family.name in new.spec.families
    return (own, other) if fits else None


def _config(version: Version, other: Version) -> Config | None:
    """Its own, unless it is not here and the other was made of the stand-in for it."""
    gives_way = version.config is None or (version.config.shipped and other.config is not None and other.config.standin)
    return other.config if gives_way else version.config


def _artifact(folder: Path, name: str) -> Version:
    if not (folder / MANIFEST).is_file():
        raise InputError(
            "this folder holds no compiled model: there is no qspec.json",
            where=name,
            hint="give a recipe, or compile it",
        )
    manifest = Manifest.read(folder)
    loaded = _resolved(manifest.recipe, str(folder / MANIFEST))
    measured = partial(_measured_of, folder) if (folder / REPORT).is_file() else None
    config = replace(Config.of(folder, manifest.model.id), standin=manifest.model.standin)
    return Version(name, loaded, config, measured)


def _measured_of(folder: Path) -> tuple[Metric, ...]:
    from qspec.artifact import verify_report_data
    from qspec.report import ReportData

    return ReportData.read(verify_report_data(folder)).metrics


def _report(content: bytes, name: str) -> Version:
    from qspec.report import ReportData

    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not the data of a report: {error}", where=name) from None
    data = ReportData.of(parsed, Path(name))
    loaded = _resolved(data.recipe.text, name)
    return Version(name, loaded, _own_config(data.model.id, data.model.revision), lambda: data.metrics)


def _content(text: str, place: tuple[str, str] | None) -> bytes:
    from qspec.files import read_input

    if place is not None:
        return read_blob(*place, MAX_REPORT)
    try:
        return read_input(Path(text))
    except OSError as error:
        raise InputError(f"the report's data cannot be read: {error.strerror or error}", where=text) from None


def _resolved(text: str, where: str) -> LoadedRecipe:
    """The recipe that an artifact or a report has, flattened."""
    return load_source(Source(where, text), passes.available(), {}, FAMILIES)


def _own_config(id: str, revision: str) -> Config | None:
    """A recipe may name a folder that only its author's machine has."""
    return find_config(id, revision) if is_name(id) or Path(id).is_dir() else None
