"""What changed between two recipes, artifacts or reports: by meaning, not by text.

    OLD, NEW  --read-->  Version  --resolve, lay out-->  facts  --compare-->  Difference  --render-->  text, Markdown

Facts are settings of blocks, the passes in order, and what happens to every module: of the model, where its config.json
is here; else of every model that both recipes fit, block by block as far as a selector tells blocks apart.
"""

from __future__ import annotations

from collections.abc import Mapping

from qspec.difference.changes import Difference
from qspec.difference.compare import compare
from qspec.difference.versions import configs, read_version

__all__ = ["Difference", "diff"]


def diff(old: str, new: str, model: str | None = None, settings: Mapping[str, str] | None = None) -> Difference:
    """What `qspec diff OLD NEW` shows: empty, and false, where both mean the same.

    old, new: a recipe, `REVISION:PATH` in git, a compiled model's folder, or a report.json. model: a folder with
    config.json, a hub id or a stand-in's name in place of the recipes' own. settings: values of recipes' parameters.

    Raises RecipeError where a recipe has errors or does not fit the model, InputError where something cannot be read.
    """
    versions = read_version(old, settings or {}), read_version(new, settings or {})
    return compare(*versions, configs(*versions, model))
