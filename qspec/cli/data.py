"""`qspec data RECIPE`: which data sets it names, where they are on this machine, and how to get the rest."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from qspec.cli.options import add_settings, settings_of
from qspec.cli.output import say

if TYPE_CHECKING:
    from qspec.data import Need


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a .qs file")
    add_settings(parser)
    parser.add_argument("--download", action="store_true", help="fetch what is missing from the hub")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from qspec import passes
    from qspec.data import DataSources
    from qspec.language import load_recipe
    from qspec.models.registry import FAMILIES

    spec = load_recipe(args.recipe, passes.available(), settings_of(args), FAMILIES).spec
    sources = DataSources(None, Path(spec.source).parent, download=args.download)
    needs = sources.needs(spec.calibrate, spec.evaluate)
    if args.json:
        say(json.dumps([_plain(need) for need in needs], indent=2))
        return 0
    for need in needs:
        say(f"{'here' if need.found else 'missing':8} {need.use:12} {need}")
        say(f"{'':21} {need.found.folder if need.found else need.get}")
    if not all(need.found for need in needs):
        say("\n--download fetches what is missing; a stand-in model brings data of its own")
    return 0


def _plain(need: Need) -> dict[str, Any]:
    found = need.found
    return {
        "use": need.use,
        "name": need.name,
        "data": need.data,
        "files": [str(path) for path in found.files] if found else None,
        "revision": found.revision if found else None,
        "get": need.get,
    }
