"""Rules mean the layout, are few, and none of their terms is idle."""

from __future__ import annotations

import re
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st

from qspec.diagnostics import Span
from qspec.formats import Scheme
from qspec.language.layout import lay_out
from qspec.language.rules import Table, rules_of
from qspec.language.selectors import ModuleTable, Selector
from qspec.language.spec import Rule
from qspec.models.registry import FAMILIES
from tests.search.spaces import PARTS

NAMES = ("w2", "w4", "w8", None)


def meaning(statements: list[str], blocks: int) -> dict[str, tuple[str | None, ...]]:
    """What the statements give every part of every block, by the language's own selectors; "-" where none matches."""
    rules = [
        Rule(Selector(m[1]), cast(Scheme, None), text, Span(0, 0))
        for text in statements
        if (m := re.fullmatch(r"layers (.*) (?:use \w+|keep)", text))
    ]
    assert len(rules) == len(statements)
    entries = [e for e in FAMILIES["llada"].outline(range(blocks)) if e.role.block is not None]
    layout = lay_out(rules, ModuleTable(entries, blocks))
    found: dict[str, list[str | None]] = {}
    for entry, rule in zip(layout.modules, layout.decided, strict=True):
        name = rule.text.rpartition(" ")[2] if rule else "-"
        found.setdefault(entry.role.part, []).append(None if name == "keep" else name)
    return {part: tuple(row) for part, row in found.items()}


def tables(names: tuple[str | None, ...] = NAMES) -> st.SearchStrategy[Table]:
    return st.integers(1, 7).flatmap(
        lambda n: st.fixed_dictionaries({p: st.tuples(*[st.sampled_from(names)] * n) for p in PARTS})
    )


@given(tables())
@settings(max_examples=60, deadline=None)
def test_rules_mean_the_layout(table: Table) -> None:
    blocks = len(table["mlp.down"])
    assert meaning(rules_of(table), blocks) == table


@given(tables(("w4", "w8")))
@settings(max_examples=30, deadline=None)
def test_no_term_is_idle(table: Table) -> None:
    blocks = len(table["mlp.down"])
    statements = rules_of(table)
    for i, text in enumerate(statements):
        head, selector, tail = re.fullmatch(r"(layers )(.*)( use \w+| keep)", text).groups()  # type: ignore[union-attr]
        terms = re.split(r", (?=blocks)", selector)
        for term in terms:
            rest = ", ".join(t for t in terms if t != term)
            shorter = [f"{head}{rest}{tail}"] if rest else []
            assert meaning([*statements[:i], *shorter, *statements[i + 1 :]], blocks) != table


def table(**rows: tuple[str | None, ...]) -> Table:
    count = len(next(iter(rows.values())))
    return {part: rows.get(part.replace(".", "_"), ("w4",) * count) for part in PARTS}


def test_what_a_person_would_write() -> None:
    assert rules_of(table(mlp_down=("w4",) * 6)) == ["layers blocks[*].* use w4"]
    assert rules_of(table(mlp_down=("w8",) * 6)) == ["layers blocks[*].* use w4", "layers blocks[*].mlp.down use w8"]
    ends = ("w8", "w4", "w4", "w4", "w4", "w8")
    assert rules_of(dict.fromkeys(PARTS, ends)) == ["layers blocks[*].* use w4", "layers blocks[0, 5].* use w8"]
    row = ("w4", "w8", "w8", "w8", None)
    assert rules_of(table(mlp_gate=row, mlp_up=row)) == [
        "layers blocks[*].* use w4",
        "layers blocks[1..3].mlp.{gate,up} use w8",
        "layers blocks[4].mlp.{gate,up} keep",
    ]
