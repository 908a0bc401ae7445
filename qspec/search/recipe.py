"""A found layout as an ordinary recipe: the search's own, with rules of its layout and without what it does not use."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qspec import passes
from qspec.diagnostics import Source, Span
from qspec.errors import QspecError
from qspec.language import load_source
from qspec.language.formatter import format_source
from qspec.language.printer import spec_text
from qspec.language.rules import rules_of
from qspec.language.selectors import Selector
from qspec.language.spec import Calibration, Evaluation, FileText, Rollouts, Rule, Spec, TextSource
from qspec.models.registry import FAMILIES
from qspec.plan import Plan, make_plan
from qspec.search.space import Choice, Layout, Space


def recipe_text(space: Space, layout: Layout, name: str, comments: tuple[str, ...], folder: Path) -> str:
    """The recipe in canonical form, without what has its default.

    name: of the recipe. comments: its evidence, line by line. folder: where it will lie; relative paths start there.
    Raises QspecError where the text does not mean the layout, which would be a fault here.
    """
    plan = space.plan
    choices = space.choices(layout)
    rules = [*_rules(plan, choices), "layers head, embedding keep"]
    used = {choice.name for choice in choices.values() if choice}
    spec = replace(
        plan.spec,
        name=name,
        families=plan.spec.families if plan.shape.experts is None else (plan.family,),  # others may lack what is named
        schemes={key: scheme for key, scheme in plan.spec.schemes.items() if key in used},
        rules=tuple(_rule(text, plan.spec) for text in rules),
        calibrate=_moved(plan.spec.calibrate, Path(plan.spec.source).parent, folder),
        evaluate=_moved_evaluation(plan.spec.evaluate, Path(plan.spec.source).parent, folder),
        search=None,
    )
    head, body = "qspec 1\n", spec_text(spec, defaults=False)
    lines = "".join(f"# {line}".rstrip() + "\n" for line in comments)
    text = format_source(body.replace(head, f"{head}\n{lines}", 1).replace(f"{lines}\n", lines, 1))
    _check(text, space, layout)
    return text


def _rules(plan: Plan, choices: Mapping[str, Choice]) -> list[str]:
    """A linear that a block does not have gets what it gets in most others: a rule may name it there."""
    linears = [module.entry.role for module in plan.modules if not module.entry.only_kept]
    names = {str(role): None if (choice := choices[str(role)]) is None else choice.name for role in linears}
    alike = {(role.block, role.part): names[str(role)] for role in linears}
    split = {role.part for role in linears if alike[role.block, role.part] != names[str(role)]}
    table: dict[str, dict[int, str | None]] = {}
    for role in linears:
        assert role.block is not None
        part = role.local if role.part in split else role.part.replace("experts", "experts[*]")
        table.setdefault(part, {})[role.block] = names[str(role)]
    common = {part: Counter(row.values()).most_common(1)[0][0] for part, row in table.items()}
    blocks = range(plan.shape.layers)
    return rules_of({part: tuple(row.get(block, common[part]) for block in blocks) for part, row in table.items()})


def _rule(text: str, spec: Spec) -> Rule:
    """Only its text is printed."""
    return Rule(Selector("blocks[*].*"), None, text, Span(0, 0, spec.source))


def _check(text: str, space: Space, layout: Layout) -> None:
    source = Source("<found>", text)
    spec = load_source(source, passes.available(), {}, FAMILIES).spec
    plan = make_plan(spec, FAMILIES[space.plan.family], space.plan.shape, standin=True)  # lengths were checked before
    wanted = space.choices(layout)
    written = {str(m.entry.role): m.scheme for m in plan.modules if not m.entry.only_kept}
    same_bits = plan.bits_per_weight == space.planned(layout).bits_per_weight
    if written != wanted or not same_bits or format_source(text) != text:
        raise QspecError("the recipe that was written does not mean the layout that was found")


def _moved(calibrate: Calibration, before: Path, after: Path) -> Calibration:
    text = calibrate.text
    if isinstance(text, Rollouts):
        return replace(calibrate, text=replace(text, prompts=_moved_text(text.prompts, before, after)))
    return replace(calibrate, text=_moved_text(text, before, after))


def _moved_evaluation(evaluate: Evaluation, before: Path, after: Path) -> Evaluation:
    return replace(
        evaluate,
        nelbo=tuple(replace(request, text=_moved_text(request.text, before, after)) for request in evaluate.nelbo),
    )


def _moved_text(text: TextSource, before: Path, after: Path) -> TextSource:
    """A relative path as seen from another folder."""
    if not isinstance(text, FileText) or Path(text.path).is_absolute():
        return text
    return replace(text, path=Path(os.path.relpath(before / text.path, after)).as_posix())
