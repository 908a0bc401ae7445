"""Finds the data folders (grammar, codegen, recipes, stand-ins) in a checkout and in an installed wheel alike."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _shared(name: str) -> Path:
    installed = _PACKAGE / "_share" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def grammar() -> Path:
    """The folder with qspec.lark and the language's reference page."""
    return _shared("grammar")


def codegen() -> Path:
    """The folder with the kernel templates."""
    return _shared("codegen")


def recipes() -> Path:
    """The folder with the recipes that ship with qspec."""
    return _shared("recipes")


def standins() -> Path:
    """The folder with the bundled small checkpoints, each named `tiny-FAMILY`."""
    return _PACKAGE / "standins"


def standin(family: str) -> Path:
    """The bundled small checkpoint that stands in for a family's real one: tiny-llada for llada."""
    return standins() / f"tiny-{family}"
