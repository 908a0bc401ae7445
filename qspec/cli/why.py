"""`qspec why RECIPE ROLE`: which line decided what."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from qspec.cli.options import add_settings, settings_of
from qspec.cli.output import say
from qspec.diagnostics import Source, Span
from qspec.errors import InputError
from qspec.models.family import ROUTER
from qspec.planned import planned


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a .qs file")
    parser.add_argument("role", metavar="ROLE", help="one module, such as blocks[31].mlp.down")
    parser.add_argument(
        "--model",
        metavar="PATH_OR_ID",
        help="folder with a config.json, hub id, or bundled stand-in such as tiny-llada, instead of the recipe's model",
    )
    add_settings(parser)


def run(args: argparse.Namespace) -> int:
    import difflib

    found = planned(Path(args.recipe), args.model, settings_of(args))
    plan = found.plan
    module = plan.module(args.role)
    if module is None:
        roles = [str(m.entry.role) for m in plan.modules]
        close = difflib.get_close_matches(args.role, roles, n=1)
        raise InputError(
            f"no module has the role {args.role!r}",
            where=f"{plan.family}, {plan.shape.layers} blocks",
            hint=f"did you mean {close[0]}?" if close else "qspec plan lists every role",
        )
    if plan.notice:
        say(plan.notice)
    say(f"{args.role} is {module.entry.module} [{module.entry.out_features}, {module.entry.in_features}]")
    matching = plan.rules_for(module)
    for rule in matching:
        decided = "decides" if rule is module.rule else "overruled"
        say(f"  {decided:<10} {_line_of(rule.span, found.sources)}  {rule.text}")
    if not matching:
        router = module.entry.role.part == ROUTER
        say(f"  {'a router' if router else 'no rule matches it: it'} is kept in {module.bits:g} bits")
    for use in module.passes:
        say(f"  {'pass':<10} {_line_of(use.span, found.sources)}  {use.text}")
    scheme = module.scheme
    if scheme:
        say(f"  weights     {scheme.weights}")
        say(f"  activations {scheme.activations or '16 bits'}")
    if module.rotations:
        steps = ", permuted, ".join(f"in blocks of {size}" for size in module.rotations)
        say(f"  input       rotated online {steps}")
    say(f"  {module.bits:.3f} bits per weight, runs {module.kernel}")
    return 0


def _line_of(span: Span, sources: Mapping[str, Source]) -> str:
    """file:line of a statement."""
    return f"{span.path}:{sources[span.path].position(span.start).line}"
