"""`qspec lock RECIPE`: writes NAME.lock beside NAME.qs."""

from __future__ import annotations

import argparse
from pathlib import Path

from qspec.cli.options import add_settings, settings_of
from qspec.cli.output import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a .qs file")
    parser.add_argument(
        "--model",
        metavar="PATH_OR_ID",
        help="checkpoint folder, hub id, or bundled stand-in such as tiny-llada, instead of the recipe's",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--download", action="store_true", help="fetch a missing checkpoint from the hub")
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    from qspec.compiler import CompileOptions, find_inputs, read_recipe
    from qspec.files import require_file
    from qspec.lock import lock_path

    path = lock_path(Path(args.recipe))
    require_file(path)
    spec = read_recipe(args.recipe, settings_of(args))
    options = CompileOptions(download=args.download, standin=False)
    inputs = find_inputs(spec, args.model, args.device, options=options)
    inputs.lock.write(path)
    say(path)
    return 0
