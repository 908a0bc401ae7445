"""`qspec kernels ARTIFACT|RECIPE`: lists, prints and compiles the generated kernels."""

from __future__ import annotations

import argparse
from pathlib import Path

from qspec.cli.options import add_settings, settings_of
from qspec.cli.output import say
from qspec.diagnostics import closest
from qspec.errors import InputError, MachineError, UsageError
from qspec.kernels.ahead import TARGETS, AheadReport, compile_all
from qspec.kernels.generate import Kernel, file_name, render
from qspec.manifest import Manifest
from qspec.planned import planned

DEFAULT_TARGETS = ("sm_80", "sm_90", "sm_100")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="ARTIFACT|RECIPE", help="a compiled model's folder, or a .qs file")
    parser.add_argument("--model", metavar="PATH_OR_ID", help="instead of the recipe's model")
    parser.add_argument("--print", metavar="NAME", dest="name", help="print one kernel's source")
    parser.add_argument("--check", action="store_true", help="compile every kernel, without a GPU")
    parser.add_argument(
        "--target",
        action="append",
        choices=tuple(TARGETS),
        help="what --check compiles for, as often as wanted; else the recipe's targets",
    )
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    kernels, targets = _of_source(args)
    if args.name is not None:
        say(render(_named(kernels, args.name)), end="")
        return 0
    if args.check or args.target:
        _check(kernels, tuple(args.target or targets))
        return 0
    for kernel in kernels.values():
        say(f"{kernel.name}  {file_name(kernel)}")
    return 0


def _of_source(args: argparse.Namespace) -> tuple[dict[str, Kernel], tuple[str, ...]]:
    """Kernels by name, and the targets they are meant for."""
    path = Path(args.source)
    if path.is_dir():
        return _of_artifact(path), DEFAULT_TARGETS
    if path.suffix != ".qs" and not path.is_file():
        raise InputError("no such artifact or recipe", where=args.source, hint="give a folder or a .qs file")
    plan = planned(path, args.model, settings_of(args)).plan
    return {kernel.name: kernel for kernel in plan.kernels()}, plan.spec.emit.targets


def _of_artifact(folder: Path) -> dict[str, Kernel]:
    """The kernels of an artifact's layers, as its manifest has them."""
    kernels: dict[str, Kernel] = {}
    for record in Manifest.read(folder).modules:
        layer = record.kernels
        if layer is not None:
            kernels.update({k.name: k for k in (layer.row, layer.gemm) if k is not None})
    return dict(sorted(kernels.items()))


def _named(kernels: dict[str, Kernel], name: str) -> Kernel:
    if name not in kernels:
        guess = closest(name, kernels)
        hint = f"did you mean {guess}?" if guess else "without --print, the names are listed"
        raise UsageError(f"there is no kernel {name!r} here", hint=hint)
    return kernels[name]


def _check(kernels: dict[str, Kernel], targets: tuple[str, ...]) -> None:
    """One line for each kernel and target; raises MachineError if any is not as it must be."""
    width = max((len(name) for name in kernels), default=0)
    failed = 0
    for report in compile_all([(kernel, target) for kernel in kernels.values() for target in targets]):
        say(_line(report, width))
        failed += bool(report.problems)
    if failed:
        raise MachineError(f"{failed} compiled kernels are not as they must be", hint="see the lines above")


def _line(report: AheadReport, width: int) -> str:
    verdict = "; ".join(report.problems) or "ok"
    matrix = ", ".join(report.instructions) or "no matrix instructions"
    takes = f"{report.registers} registers, {report.shared} bytes shared"
    return f"{report.kernel:<{width}}  {report.target:<6}  {verdict}  ({takes}; {matrix})"
