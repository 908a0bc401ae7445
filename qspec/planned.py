"""A recipe's plan, where no weights are needed: `qspec plan`, `why`, `kernels`, editors. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qspec import passes, resources
from qspec.data.sources import STANDIN_FILE
from qspec.diagnostics import Source
from qspec.errors import InputError
from qspec.language import LoadedRecipe, load_recipe
from qspec.models.config import read_config
from qspec.models.family import DecoderShape, Family
from qspec.models.forms import check_form
from qspec.models.known import known_models
from qspec.models.locate import checkpoint_locate
from qspec.models.registry import FAMILIES, family_of
from qspec.plan import Plan, make_plan

SHIPPED = "planned from its config.json as it ships with qspec"


@dataclass(frozen=True)
class Config:
    """What a plan needs of a model: its config.json, read. standin: whether the model is a stand-in for others.
    shipped: whether the model is not on this machine, and qspec knows its config.json."""

    name: str
    family: Family
    shape: DecoderShape
    standin: bool
    shipped: bool = False

    @classmethod
    def of(cls, folder: Path, name: str | None = None) -> Config:
        """That of a folder. Errors: InputError where there is none, or none of a known model."""
        family, shape, _ = read_config(folder)
        return cls(name or folder.name, family, shape, (folder / STANDIN_FILE).is_file())


def find_config(id_or_path: str, revision: str | None = None) -> Config | None:
    """The config of a folder, a bundled stand-in, a model in the hub's cache or a known one; None where there is none.

    Errors: InputError for what is no checkpoint, or is quantized already.
    """
    folder = checkpoint_locate(id_or_path, revision, weights=False)
    if folder is None:
        known = known_models().get(id_or_path)
        if known is None:
            return None
        family = family_of(known)
        return Config(id_or_path, family, family.shape(known), standin=False, shipped=True)
    check_form(folder)
    return Config.of(folder, id_or_path)


@dataclass(frozen=True)
class Planned:
    """sources: the texts that the recipe's spans point into. standin: whether the model is a stand-in for others."""

    plan: Plan
    sources: Mapping[str, Source]
    standin: bool = False


def plan(recipe: str | Path, model: str | None = None, settings: Mapping[str, str] | None = None) -> Plan:
    """Every decision of a compile, from config.json alone: what `qspec plan` prints. No weights, no torch.

    model: a folder, hub id in the local cache, or bundled stand-in such as tiny-llada, in place of the recipe's model;
    where that is not here, its config as it ships serves, else the family's stand-in's, and `notice` says so. settings:
    values of the recipe's parameters. In a notebook a plan shows itself as tables. Raises RecipeError for a recipe with
    errors or one that does not fit the model, InputError where a file or model is absent.
    """
    return planned(recipe, model, settings or {}).plan


def planned(recipe: str | Path, model: str | None, settings: Mapping[str, str]) -> Planned:
    """The plan of a recipe with these values of its parameters; errors as `load_recipe` and `plan_of`."""
    return plan_of(load_recipe(recipe, passes.available(), settings, FAMILIES), model)


def plan_of(loaded: LoadedRecipe, model: str | None) -> Planned:
    """The plan of a recipe that is read.

    The config is that of `model`, else of the recipe's model: in the local cache, or as qspec knows it; else of the
    stand-in of the recipe's first family. Errors: InputError where `model` has no config here or cannot be quantized,
    RecipeError where the recipe does not fit it.
    """
    spec = loaded.spec
    config = find_config(model) if model else find_config(spec.model.id, spec.model.revision)
    notice = None
    if config is None:
        if model:
            raise InputError(f"there is no config.json of {model!r} on this machine", hint="give a folder")
        config = Config.of(resources.standin(spec.families[0]))
        notice = f"{spec.model.id} is not on this machine: planning for the bundled stand-in {config.name} instead"
    elif config.shipped:
        notice = f"{config.name} is not on this machine: {SHIPPED}"
    made = make_plan(spec, config.family, config.shape, standin=config.standin)
    return Planned(replace(made, notice=notice), loaded.sources, config.standin)
