"""A layout as few `layers` rules, as a person would write them: the general rule first, exceptions after it.

Three kinds of rules, each over the ones before it: one for all blocks, one for a role in all blocks, one for runs of
blocks. Roles with the same blocks share a rule. Of all ways to fill the first two, the one with the fewest terms
stays; then every term that changes nothing goes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

Name = str | None  # of a scheme; None: kept
Table = Mapping[str, tuple[Name, ...]]  # part -> for each block, what it gets
_INDEX = re.compile(r"\[[^\]]*\]")
_EXPERT = re.compile(r"([^\[]*)\[(\d+)\](.*)")
WAYS = 4096  # ways to fill the second kind of rule that are tried


@dataclass(frozen=True)
class Term:
    """`blocks[0, 4..7].attention.{q,k,v}`: parts, all of one group or all there are, in some blocks."""

    blocks: tuple[int, ...]
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """`layers TERM, TERM use NAME`."""

    terms: tuple[Term, ...]
    name: Name


def rules_of(table: Table) -> list[str]:
    """Statements that give every part in every block what the table says, in canonical form."""
    parts, count = tuple(table), len(next(iter(table.values())))
    blocks = [(block, block) for block in range(count)]
    _, _, lines = min(_candidates(table), key=lambda candidate: (_terms(candidate[2]), candidate[0], candidate[1]))
    lines = _pruned(lines, table)
    return [_statement(line, parts, blocks) for line in lines]


def selector_of(cells: Mapping[str, Sequence[int]], parts: Sequence[str], blocks: Sequence[tuple[int, int]]) -> str:
    """Exactly these modules, as few terms: cells has the places in `blocks` that each part is meant in.

    parts: all of a block, in order. blocks: the first and the last block of each place, as a recipe counts them.
    """
    cells, parts = _together({part: cells[part] for part in parts if part in cells}, parts)
    by_part = _grouped({(part, None): tuple(places) for part, places in cells.items()}, parts)[0].terms
    owns: dict[int, list[str]] = {}
    for part, places in cells.items():
        for place in places:
            owns.setdefault(place, []).append(part)
    alike: dict[tuple[str, ...], list[int]] = {}
    for place in sorted(owns):
        alike.setdefault(tuple(owns[place]), []).append(place)
    by_block = [Term(tuple(places), own) for chosen, places in alike.items() for own in _spelt(chosen, parts)]
    return ", ".join(_term(term, parts, blocks) for term in min(by_part, by_block, key=len))


def _together(cells: Mapping[str, Sequence[int]], parts: Sequence[str]) -> tuple[dict[str, Sequence[int]], list[str]]:
    """Cells and parts with the experts that are meant in the same places as one part: `mlp.experts[0..2].down`."""
    found: dict[str, Sequence[int]] = {}
    alike: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for part, places in cells.items():
        own = _EXPERT.fullmatch(part)
        if own is None:
            found[part] = places
        else:
            alike.setdefault((own[1], own[3], tuple(places)), []).append(int(own[2]))
    for (before, after, places), numbers in alike.items():
        every = sum(own is not None and (own[1], own[3]) == (before, after) for own in map(_EXPERT.fullmatch, parts))
        index = "*" if len(numbers) == every else ", ".join(_run(*run) for run in runs(sorted(numbers)))
        found[f"{before}[{index}]{after}"] = places
    return found, [*found, *(part for part in parts if part not in cells)] if alike else list(parts)


def _candidates(table: Table) -> Iterable[tuple[int, tuple[int, int], list[Line]]]:
    """Each with the rank of its general rule, that of the commonest scheme first, and how much of it is spelt out."""
    parts, count = tuple(table), len(next(iter(table.values())))
    common = Counter(name for row in table.values() for name in row)
    for rank, (general, _) in enumerate(common.most_common()):
        likely = [_defaults(table[part], general) for part in parts]
        ways = list(product(*likely)) if _size(likely) <= WAYS else [tuple(row[-1] for row in likely)]
        for way in ways:
            lines = _lines(table, parts, count, general, dict(zip(parts, way, strict=True)))
            yield rank, _spelling(lines), lines


def _size(rows: Sequence[Sequence[Name]]) -> int:
    size = 1
    for row in rows:
        size *= len(row)
    return size


def _defaults(row: Sequence[Name], general: Name) -> tuple[Name, ...]:
    """What a role may have as its own default: the general one, or the one that most of its blocks have."""
    common = max(dict.fromkeys(row), key=lambda name: sum(n == name for n in row))
    return tuple(dict.fromkeys((general, common)))


def _lines(table: Table, parts: Sequence[str], count: int, general: Name, default: Mapping[str, Name]) -> list[Line]:
    every = tuple(range(count))
    lines = [Line((Term(every, tuple(parts)),), general)]
    own = {part: every for part in parts if default[part] != general}
    lines += _grouped({(part, default[part]): blocks for part, blocks in own.items()}, parts)
    odd: dict[tuple[str, Name], tuple[int, ...]] = {}
    for part in parts:
        for block, name in enumerate(table[part]):
            if name != default[part]:
                odd[part, name] = (*odd.get((part, name), ()), block)
    return lines + _grouped(odd, parts)


def _grouped(cells: Mapping[tuple[str, Name], tuple[int, ...]], parts: Sequence[str]) -> list[Line]:
    """A line for each name, a term for each set of blocks and group of parts."""
    names = list(dict.fromkeys(name for _, name in cells))
    lines = []
    for name in names:
        alike: dict[tuple[int, ...], list[str]] = {}
        for (part, own), blocks in cells.items():
            if own == name:
                alike.setdefault(blocks, []).append(part)
        terms = [Term(blocks, own) for blocks, found in alike.items() for own in _spelt(found, parts)]
        lines.append(Line(tuple(terms), name))
    return lines


def _spelt(chosen: Sequence[str], parts: Sequence[str]) -> list[tuple[str, ...]]:
    """The parts cut so that each piece can be written as one term: all, several whole groups, or some of one group."""
    if len(chosen) == len(parts):
        return [tuple(chosen)]
    groups: dict[str, list[str]] = {}
    for part in chosen:
        groups.setdefault(part.rpartition(".")[0], []).append(part)
    return [tuple(own) for own in groups.values()]


def _pruned(lines: list[Line], table: Table) -> list[Line]:
    """Without terms that change nothing."""
    place = 0
    flat = [(i, term) for i, line in enumerate(lines) for term in line.terms]
    while place < len(flat):
        without = flat[:place] + flat[place + 1 :]
        if _decided(without, lines, table) == dict(table):
            flat = without
        else:
            place += 1
    kept = [Line(tuple(t for j, t in flat if j == i), line.name) for i, line in enumerate(lines)]
    return [line for line in kept if line.terms]


def _decided(flat: Sequence[tuple[int, Term]], lines: Sequence[Line], table: Table) -> dict[str, tuple[Name, ...]]:
    count = len(next(iter(table.values())))
    names: dict[str, list[Name]] = {part: ["" for _ in range(count)] for part in table}
    for i, term in flat:
        for part in term.parts:
            for block in term.blocks:
                names[part][block] = lines[i].name
    return {part: tuple(row) for part, row in names.items()}


def _terms(lines: Sequence[Line]) -> int:
    return sum(len(line.terms) for line in lines)


def _spelling(lines: Sequence[Line]) -> tuple[int, int]:
    """Runs of blocks, and parts."""
    terms = [term for line in lines for term in line.terms]
    return sum(len(runs(t.blocks)) for t in terms), sum(len(t.parts) for t in terms)


def runs(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive stretches, both ends included."""
    intervals: list[tuple[int, int]] = []
    for block in blocks:
        if intervals and intervals[-1][1] == block - 1:
            intervals[-1] = (intervals[-1][0], block)
        else:
            intervals.append((block, block))
    return intervals


def _statement(line: Line, parts: Sequence[str], blocks: Sequence[tuple[int, int]]) -> str:
    terms = ", ".join(_term(term, parts, blocks) for term in line.terms)
    return f"layers {terms} {f'use {line.name}' if line.name else 'keep'}"


def _term(term: Term, parts: Sequence[str], blocks: Sequence[tuple[int, int]]) -> str:
    pieces = [_run(blocks[a][0], blocks[b][1]) for a, b in runs(term.blocks)]
    index = "*" if len(term.blocks) == len(blocks) else ", ".join(pieces)
    return f"blocks[{index}].{_parts(term.parts, parts)}"


def _parts(own: Sequence[str], parts: Sequence[str]) -> str:
    if len(own) == len(parts):
        return "*"
    group = own[0].rpartition(".")[0]
    inside = [part for part in parts if part.rpartition(".")[0] == group]
    named = f"{_INDEX.sub('', group)}."
    others = any(_INDEX.sub("", part).startswith(named) and part not in inside for part in parts)  # `*` names them too
    if len(own) == len(inside) > 1 and not others:
        return f"{group}.*"
    names = [part.rpartition(".")[2] for part in own]
    return f"{group}.{names[0]}" if len(names) == 1 else f"{group}.{{{','.join(names)}}}"


def _run(low: int, high: int) -> str:
    """3, or 3, 4, or 3..5."""
    return str(low) if low == high else f"{low}{', ' if high == low + 1 else '..'}{high}"
