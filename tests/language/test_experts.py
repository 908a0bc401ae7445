"""Selectors of experts: by number, never a router that is not named, and never beyond the model's experts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from qspec.diagnostics import RecipeError
from qspec.language import load_recipe
from qspec.language.layers import verify
from qspec.language.rules import selector_of
from qspec.language.selectors import ModuleTable, Selector
from qspec.models.llada2 import LLADA2
from qspec.models.registry import FAMILIES
from qspec.passes import available
from tests.models.expert_layout import TINY_LLADA2

SHAPE = LLADA2.shape(TINY_LLADA2)  # 3 blocks, the first one dense; 8 experts and a shared one
MODULES = LLADA2.modules(SHAPE)
RECIPE = """qspec 1
recipe r {{
  family llada2
  model "x/y"
}}
scheme w4 {{
  weights int4 per channel
}}
layers blocks[*].* use w4
{rule}
apply rtn() on blocks[*].*
"""


def selected(text: str) -> list[str]:
    table = ModuleTable(MODULES, SHAPE.layers)
    found = [str(MODULES[place].role) for place in table.select(Selector(text))]
    assert found == [str(entry.role) for entry in MODULES if Selector(text).matches(entry, SHAPE.layers)]
    return found


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("blocks[*].*", 3 * 4 + 3 + 2 * (8 * 3 + 3)),
        ("blocks[*].mlp.*", 3 + 2 * 27),
        ("blocks[*].mlp.experts[*].*", 48),
        ("blocks[*].mlp.experts[0..2, 7].down", 8),
        ("blocks[1].mlp.experts[5].{gate,up}", 2),
        ("blocks[*].mlp.shared.*", 6),
        ("blocks[*].mlp.{gate,up}", 2),
        ("blocks[*].mlp.router", 2),
        ("blocks[1].mlp.{router,shared}.*", 3),
        ('module("model.layers.1.mlp..*")', 27),
    ],
)
def test_what_a_selector_names(text: str, count: int) -> None:
    found = selected(text)
    assert len(found) == len(set(found)) == count
    assert all(("router" in role) == ("router" in text) for role in found) or text.endswith("{router,shared}.*")


@pytest.mark.parametrize(
    ("experts", "names", "blocks", "expected"),
    [
        (range(8), ("gate", "up", "down"), [1, 2], "blocks[1, 2].mlp.experts[*].*"),
        (range(3), ("down",), [1], "blocks[1].mlp.experts[0..2].down"),
        ((0, 1, 5), ("gate", "up"), [1, 2], "blocks[1, 2].mlp.experts[0, 1, 5].{gate,up}"),
    ],
)
def test_modules_of_experts_in_words(
    experts: Sequence[int], names: Sequence[str], blocks: list[int], expected: str
) -> None:
    parts = list(dict.fromkeys(entry.role.local for entry in MODULES if not entry.only_kept))
    cells = {f"mlp.experts[{expert}].{name}": blocks for expert in experts for name in names}
    found = selector_of(cells, parts, [(block, block) for block in range(3)])
    assert found == expected
    wanted = {f"blocks[{block}].{cell}" for cell in cells for block in blocks}
    assert set(selected(found)) == wanted


@pytest.mark.parametrize(
    ("rule", "code", "what"),
    [
        ("layers blocks[*].mlp.experts[0..8].down keep", "QS032", "there is no expert 8: the model has 8 experts"),
        ("layers blocks[*].mlp.experts[-1].down keep", "QS032", "names no expert"),
        ("layers blocks[*].mlp.router use w4", "QS036", "`blocks[1].mlp.router` can only be kept"),
    ],
)
def test_what_the_model_does_not_have_is_said(tmp_path: Path, rule: str, code: str, what: str) -> None:
    path = tmp_path / "r.qs"
    path.write_text(RECIPE.format(rule=rule))
    with pytest.raises(RecipeError) as caught:
        verify(load_recipe(path, available(), {}, FAMILIES).spec, MODULES, SHAPE.layers)
    first = caught.value.diagnostics[0]
    assert first.code == code
    assert what in first.message
