"""Where the weights come from: a folder, the local cache, the hub if asked, or the bundled stand-in, said out loud."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qspec import resources
from qspec.data.sources import STANDIN_FILE
from qspec.errors import InputError
from qspec.language.spec import Spec
from qspec.models.locate import checkpoint_locate

BUNDLED = "bundled"  # the revision of what ships with qspec
STANDIN_OUTLIERS = "Its outliers were injected by qspec's authors, at sizes that they chose."
NEVER_RUN = "No real checkpoint of LLaDA-8B or Dream-7B was ever compiled by them."


@dataclass(frozen=True)
class Origin:
    """folder: the checkpoint. id, revision: what it is called. standin: whether it stands in for the recipe's model."""

    folder: Path
    id: str
    revision: str
    standin: bool
    notice: str | None = None


def find_checkpoint(spec: Spec, model: str | None, *, download: bool, standin: bool) -> Origin:
    """`model` if given, else the recipe's model in the local cache, else the stand-in of the recipe's first family.

    Never downloads unless `download`. Raises InputError where the checkpoint is absent and no stand-in may be used.
    """
    wanted, revision = (model, "main") if model else (spec.model.id, spec.model.revision)
    folder = checkpoint_locate(wanted, revision, download=download)
    if folder is not None:
        bundled = (folder / STANDIN_FILE).is_file()
        notice = f"{wanted} is a bundled stand-in model, not a real checkpoint" if bundled else None
        if folder.parent == resources.standins():
            revision = BUNDLED
        return Origin(folder, wanted, revision, bundled, notice)
    if model:
        raise InputError(
            f"there is no checkpoint {model!r} on this machine",
            hint="give a folder with config.json and safetensors, or add --download",
        )
    if not standin:
        raise InputError(
            f"{wanted} is not on this machine, and a stand-in was ruled out",
            hint="give --model FOLDER, or add --download",
        )
    family = spec.families[0]
    folder = resources.standin(family)
    if not folder.is_dir():
        raise InputError(
            f"{wanted} is not on this machine, and the family {family} has no stand-in",
            hint="give --model FOLDER, or add --download",
        )
    notice = f"{wanted} is not on this machine: compiling the bundled stand-in {folder.name} instead"
    return Origin(folder, folder.name, BUNDLED, True, notice)
