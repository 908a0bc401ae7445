"""A scheme or param under another name, in all recipes that share it."""

from __future__ import annotations

import re

from qspec.diagnostics import Edit, quote
from qspec.errors import UsageError
from qspec.language.places import Symbol, symbols
from qspec.lsp.recipes import Recipes

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def renamed(recipes: Recipes, path: str, offset: int, name: str) -> list[Edit]:
    """The edits of every recipe. Raises UsageError where nothing can be renamed there, or not to that."""
    symbol = recipes.symbol(path, offset)
    if symbol is None:
        raise UsageError("only schemes and params can be renamed")
    if not _NAME.fullmatch(name) or (symbol.kind == "scheme" and name == "keep"):
        raise UsageError(f"{quote(name)} cannot name a {symbol.kind}", hint="letters, digits and _, at most 64")
    files = recipes.sharing(path, symbol)
    if not any(used.declares for used in recipes.uses(path, symbol)):
        raise UsageError(f"{symbol.kind} {quote(symbol.name)} is declared nowhere")
    _require_files(recipes, files)
    for file in files:
        for other in (s for base in recipes.chain(file) for s in symbols(recipes.file(base))):
            if other.same(Symbol(symbol.kind, name, symbol.span, declares=True)) and name != symbol.name:
                raise UsageError(f"there is a {symbol.kind} {quote(name)} already", where=other.span.path)
    return [Edit(used.span, name) for used in recipes.uses(path, symbol)]


def _require_files(recipes: Recipes, files: list[str]) -> None:
    """Raises UsageError where a base that shares the name is outside of the workspace."""
    outside = [file for file in files if file not in recipes.files()]
    if outside:
        raise UsageError("a recipe that shares this name is outside of the workspace", where=outside[0])
