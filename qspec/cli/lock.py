"""`qspec lock RECIPE...`: writes NAME.lock beside NAME.qs; `--check` tells what is stale, `--diff` shows it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from qspec.cli.options import add_settings, settings_of
from qspec.cli.output import say, tell, unified_diff


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipes", metavar="RECIPE", nargs="+", help="a .qs file")
    parser.add_argument("--check", action="store_true", help="write nothing; tell what is stale, and exit 1 if any is")
    parser.add_argument(
        "--where-locked",
        action="store_true",
        help="a lock stands for its recipe, and recipes without a lock are passed by, as hooks need it",
    )
    parser.add_argument("--diff", action="store_true", help="write nothing; print what would change")
    parser.add_argument(
        "--model",
        metavar="PATH_OR_ID",
        help="checkpoint folder, hub id, or bundled stand-in such as tiny-llada, instead of the recipe's",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--download", action="store_true", help="fetch missing checkpoints and data from the hub")
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    settings = settings_of(args)
    recipes = [Path(recipe) for recipe in args.recipes]
    return max((_run(one, settings, args) for one in (_locked(recipes) if args.where_locked else recipes)), default=0)


def _locked(paths: Sequence[Path]) -> list[Path]:
    """The recipes that have a lock, each once, of recipes, locks, and other tools' locks."""
    recipes = dict.fromkeys(path.with_suffix(".qs") for path in paths)
    return [recipe for recipe in recipes if recipe.is_file() and recipe.with_suffix(".lock").is_file()]


def _run(recipe: Path, settings: Mapping[str, str], args: argparse.Namespace) -> int:
    from qspec.compiler import find_lock, read_recipe
    from qspec.files import require_file
    from qspec.lock import lock_path, lock_text

    path = lock_path(recipe)
    if args.check:
        return _check(recipe, path, settings, args)
    require_file(path)
    lock = find_lock(read_recipe(recipe, settings), args.model, args.device, download=args.download)
    if args.diff:
        before = lock_text(path) or ""
        say(unified_diff(before, lock.text(), str(path), f"{path} (now)"), end="")
        return 0
    lock.write(path)
    say(path)
    return 0


def _check(recipe: Path, path: Path, settings: Mapping[str, str], args: argparse.Namespace) -> int:
    """Whether the lock is stale. What is not on this machine is not compared, and said."""
    from qspec.compiler import find_lock, read_recipe
    from qspec.errors import InputError
    from qspec.lock import Lock, package_changes, recipe_changes

    lock, spec = Lock.read(path), read_recipe(recipe, settings)
    try:
        actual = find_lock(spec, args.model, args.device, download=args.download)
    except InputError as error:
        tell(f"{path}: recipe and packages alone were compared: {error}")
        stale = recipe_changes(lock, spec) + package_changes(lock)
    else:
        stale = lock.stale(actual)
        for difference in lock.machine(actual):
            say(f"{path}: another machine, which compile tells and --locked=strict refuses: {difference}")
    for difference in stale:
        say(f"{path}: stale: {difference}")
    if not stale:
        say(f"{path}: holds")
    return int(bool(stale))
