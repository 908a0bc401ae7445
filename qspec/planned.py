"""A recipe's plan, where no weights are needed: `qspec plan`, `why`, `kernels`, editors. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qspec import passes, resources
from qspec.data.sources import STANDIN_FILE
from qspec.diagnostics import Source
from qspec.errors import InputError
from qspec.language import LoadedRecipe, load_recipe
from qspec.models.config import read_config
from qspec.models.forms import check_form
from qspec.models.locate import checkpoint_locate
from qspec.models.registry import FAMILIES
from qspec.plan import Plan, make_plan


@dataclass(frozen=True)
class Planned:
    """notice: said where the stand-in's config had to serve. sources: the texts that the recipe's spans point into."""

    plan: Plan
    notice: str | None
    sources: Mapping[str, Source]


def planned(recipe: str | Path, model: str | None, settings: Mapping[str, str]) -> Planned:
    """The plan of a recipe with these values of its parameters; errors as `load_recipe` and `plan_of`."""
    return plan_of(load_recipe(recipe, passes.available(), settings, FAMILIES), model)


def plan_of(loaded: LoadedRecipe, model: str | None) -> Planned:
    """The plan of a recipe that is read.

    The config comes from `model`, else from the recipe's model in the local cache, else from the stand-in of
    the recipe's first family. Errors: InputError where `model` is not on this machine or cannot be quantized,
    RecipeError where the recipe does not fit it.
    """
    spec = loaded.spec
    folder = checkpoint_locate(model or spec.model.id, None if model else spec.model.revision, weights=False)
    notice = None
    if folder is None:
        if model:
            raise InputError(f"there is no config.json of {model!r} on this machine", hint="give a folder")
        folder = resources.standin(spec.families[0])
        notice = f"{spec.model.id} is not on this machine: planning for the bundled stand-in {folder.name} instead"
    check_form(folder)
    family, shape, _ = read_config(folder)
    plan = make_plan(spec, family, shape, standin=(folder / STANDIN_FILE).is_file())
    return Planned(plan, notice, loaded.sources)
