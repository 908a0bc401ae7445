"""The recipe language: text in, a resolved `Spec` or diagnostics out. No torch.

    read, cut in pieces, parse  -->  syntax tree  --merge bases-->  statements  --resolve-->  Spec
    --verify-->  Layout

`load_recipe` is the entry for everybody. Passes and families come from the caller: the language knows
neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qspec.diagnostics import Diagnostic, RecipeError, Source, errors, in_order
from qspec.errors import InputError
from qspec.language.layers import outline_problems, unsure
from qspec.language.lints import lints, not_allowed, unused_allowances
from qspec.language.merge import Merged, Read, merge, merge_file
from qspec.language.parser import read
from qspec.language.printer import spec_text
from qspec.language.resolve import Resolver
from qspec.language.spec import Pass, Spec
from qspec.models.family import Family

Settings = Mapping[str, str] | Iterable[tuple[str, str]]

__all__ = ["LoadedRecipe", "RecipeError", "Understood", "load_recipe", "load_source", "understand"]


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe without errors: its meaning, the warnings, and the texts that they point into."""

    spec: Spec
    warnings: tuple[Diagnostic, ...]
    sources: Mapping[str, Source]


@dataclass(frozen=True)
class Understood:
    """What could be understood of a recipe. spec: None where it has errors."""

    merged: Merged
    spec: Spec | None
    problems: tuple[Diagnostic, ...]

    def loaded(self) -> LoadedRecipe:
        """Its meaning. Raises RecipeError with every diagnostic."""
        if self.spec is None or errors(self.problems):
            raise RecipeError(self.problems, self.merged.sources)
        return LoadedRecipe(replace(self.spec, text=spec_text(self.spec)), self.problems, self.merged.sources)


def load_recipe(
    path: str | Path,
    passes: Mapping[str, type[Pass]],
    settings: Settings = (),
    families: Mapping[str, Family] | None = None,
) -> LoadedRecipe:
    """Reads, parses and resolves a recipe with its bases.

    passes: name in `apply` -> class (`qspec.passes.available()`). settings: values for params, as --set
    gives them.
    families: name -> family (`qspec.models.registry.FAMILIES`); with them, roles and the order of passes
    are checked too.

    Raises RecipeError with every diagnostic (exit 1), InputError where the file cannot be read (exit 3).
    """
    try:
        merged = merge_file(path)
    except OSError as error:
        what = f"the recipe cannot be read: {error.strerror or error}"
        raise InputError(what, where=str(path), hint="check the path; a recipe is a `.qs` file") from None
    return _understood(merged, passes, settings, families).loaded()


def load_source(
    source: Source,
    passes: Mapping[str, type[Pass]],
    settings: Settings = (),
    families: Mapping[str, Family] | None = None,
    read: Read = read,
) -> LoadedRecipe:
    """As `load_recipe`, for a text that is already here. read: reads its bases."""
    return understand(source, passes, settings, families, read).loaded()


def understand(
    source: Source,
    passes: Mapping[str, type[Pass]],
    settings: Settings = (),
    families: Mapping[str, Family] | None = None,
    read: Read = read,
) -> Understood:
    """Everything that can be known of a text, which may be half-typed. read: reads its bases."""
    return _understood(merge(source, read=read), passes, settings, families)


def _understood(
    merged: Merged, passes: Mapping[str, type[Pass]], settings: Settings, families: Mapping[str, Family] | None
) -> Understood:
    spec = Resolver(merged, passes, dict(settings), families or {}).spec()
    if spec is not None and families:
        merged.problems += outline_problems(spec, [families[name] for name in spec.families], merged.sources)
    if spec is not None:
        merged.problems += lints(spec, merged)
    if spec is not None and families and not settings and not errors(merged.problems):
        merged.problems += unused_allowances(merged.problems, merged.sources[spec.source], unsure(spec))
    return Understood(merged, spec, in_order(not_allowed(merged.problems, merged.sources), merged.sources))
