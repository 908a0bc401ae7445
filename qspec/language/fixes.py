"""Applies what diagnostics suggest: their edits, round after round, until none is left that has any."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from qspec.diagnostics import Diagnostic, Edit, Source, apply_edits

MAX_ROUNDS = 100  # a fix can show what it hid; no recipe needs many


@dataclass(frozen=True)
class Fixed:
    """source: the text with the fixes made. fixes: the diagnostics whose edits were made, in order."""

    source: Source
    fixes: tuple[Diagnostic, ...]


def fix(source: Source, find: Callable[[Source], Sequence[Diagnostic]]) -> Fixed:
    """The text without the diagnostics of `find` that have a fix in this file. Fixing it again changes nothing."""
    made: list[Diagnostic] = []
    seen = {source.text}
    for _ in range(MAX_ROUNDS):
        chosen = compatible(one for one in find(source) if _here(one, source.path))
        text = apply_edits(source.text, [edit for one in chosen for edit in one.edits])
        if text in seen:  # nothing to do, or fixes that undo each other
            break
        seen.add(text)
        source = replace(source, text=text)
        made += chosen
    return Fixed(source, tuple(made))


def compatible(found: Iterable[Diagnostic]) -> list[Diagnostic]:
    """Those whose edits can be made together: of two that touch the same characters the first."""
    chosen: list[Diagnostic] = []
    taken: list[Edit] = []
    for one in found:
        if not any(_clash(edit, other) for edit in one.edits for other in taken):
            chosen.append(one)
            taken += one.edits
    return chosen


def _here(one: Diagnostic, path: str) -> bool:
    return bool(one.edits) and all(edit.span.path == path for edit in one.edits)


def _clash(one: Edit, other: Edit) -> bool:
    """Whether they overlap; an insertion and what it touches do, as their order would matter."""
    a, b = one.span, other.span
    if a.start == a.end or b.start == b.end:
        return a.start <= b.end and b.start <= a.end
    return a.start < b.end and b.start < a.end
