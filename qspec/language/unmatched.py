"""Selectors that select nothing, and what they probably meant."""

from __future__ import annotations

from collections.abc import Sequence

from qspec.diagnostics import Diagnostic, Edit, closest, quote
from qspec.language.selectors import (
    AnyTerm,
    Indices,
    ModuleTable,
    ModuleTerm,
    RoleTerm,
    Segment,
    Selector,
    index_range,
)
from qspec.language.syntax import Leaf
from qspec.models.family import ModuleEntry


def selector_problems(selectors: Sequence[Selector], table: ModuleTable) -> list[Diagnostic]:
    """One diagnostic for each term that selects nothing or names a block that is not there."""
    found = []
    for term in (term for selector in selectors for term in selector.terms):
        bad_index = _index_problem(term, table)
        if bad_index:
            found.append(bad_index)
            continue
        if not table.places(term):
            found.append(_matches_nothing(term, table))
    return found


def _index_problem(term: AnyTerm, table: ModuleTable) -> Diagnostic | None:
    """A block or an expert that the model does not have."""
    layers = table.layers
    segments: tuple[Segment, ...] = term.segments if isinstance(term, RoleTerm) else ()
    if inner := [part for segment in segments[1:] for part in segment.indices if part.low is not None]:
        return _expert_problem(inner, table)
    for segment in segments[:1]:
        for part in segment.indices:
            blocks = index_range(part, layers)
            if part.low is None:
                continue
            if not blocks:
                message = f"the range {part} holds no block of a model with {layers} blocks"
                return Diagnostic("QS032", message, part.span, "write the smaller block first")
            if blocks[0] < 0 or blocks[-1] >= layers:
                bad = part.low if not 0 <= blocks[0] < layers else part.high
                message = f"there is no block {bad}: the model has {layers} blocks"
                return Diagnostic(
                    "QS032", message, part.span, f"write indices from 0 to {layers - 1}, or -{layers} to -1"
                )
    return None


def _expert_problem(parts: Sequence[Indices], table: ModuleTable) -> Diagnostic | None:
    """An expert that the model does not have."""
    count = max((entry.role.expert + 1 for entry in table.modules if entry.role.expert is not None), default=0)
    for part in parts if count else ():
        assert part.low is not None
        assert part.high is not None
        if part.low < 0 or part.high < part.low:
            message = f"`{part}` names no expert: they are counted from 0"
            return Diagnostic("QS032", message, part.span, "write the smaller expert first")
        if part.high >= count:
            message = f"there is no expert {part.high}: the model has {count} experts"
            return Diagnostic("QS032", message, part.span, f"write indices from 0 to {count - 1}")
    return None


def _matches_nothing(term: AnyTerm, table: ModuleTable) -> Diagnostic:
    modules = table.modules
    if isinstance(term, ModuleTerm):
        hint = f"the pattern must match a whole name such as {modules[len(modules) // 2].module}"
        return Diagnostic("QS030", f"{quote(str(term))} matches no module", term.span, hint)
    known = _known(modules)
    message = f"{quote(str(term))} selects nothing"
    for segment in term.segments:
        word = segment.names[0] if segment.names else None
        if word and word.text in ("norm", "final_norm"):
            hint = "norms stay as they are; select linears, the embedding or the head"
            return Diagnostic("QS031", f"{quote(str(term))} is a norm, which is not quantized", term.span, hint)
    wrong = _wrong_word(term, known)
    if wrong:
        word, guess = wrong
        what = f"{message}: there is no {quote(word.text)}"
        if guess:
            return Diagnostic("QS030", what, word.span, f"did you mean `{guess}`?", edits=(Edit(word.span, guess),))
        return Diagnostic("QS030", what, word.span, f"roles are {_roles(modules)}")
    better = _longer(term, table)
    if better:
        hint = f"write `{better}`"
        return Diagnostic("QS030", message, term.span, hint, edits=(Edit(term.span, better),))
    return Diagnostic("QS030", message, term.span, f"roles are {_roles(modules)}")


def _known(modules: Sequence[ModuleEntry]) -> list[set[str]]:
    """The names that can stand at each step."""
    known: list[set[str]] = []
    for entry in modules:
        for depth, (name, _) in enumerate(entry.role.path):
            if depth == len(known):
                known.append(set())
            known[depth].add(name)
    return known


def _wrong_word(term: RoleTerm, known: list[set[str]]) -> tuple[Leaf, str | None] | None:
    """The first name that no role has at its step, and the name that was probably meant."""
    for depth, segment in enumerate(term.segments):
        for word in segment.names:
            names = known[depth] if depth < len(known) else set()
            if word.text not in names:
                return word, closest(word.text, names)
    return None


def _longer(term: RoleTerm, table: ModuleTable) -> str | None:
    """A spelling near the term that does select something: `blocks` with its index, or everything below."""
    text = str(term)
    first = term.segments[0]
    if first.names and first.names[0].text == "blocks" and not first.indices:
        text = text.replace("blocks", "blocks[*]", 1)
    for candidate in (text, f"{text}.*"):
        if candidate != str(term) and table.select(Selector(candidate)):
            return candidate
    return None


def _roles(modules: Sequence[ModuleEntry]) -> str:
    names = dict.fromkeys(
        entry.role.part if entry.role.block is None else f"blocks[*].{entry.role.part}" for entry in modules
    )
    return ", ".join(names)
