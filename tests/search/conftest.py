"""The checkpoint that compiles in seconds, with a recipe to search on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.conftest import Mini, mini

__all__ = ["Mini", "mini"]

RECIPE = """\
qspec 1

recipe mini_search {{
  family llada
  model  "{model}"
}}

calibrate {{
  text    file("{text}")
  samples 4
  length  32
  seed    3
}}

scheme w2 {{
  weights int2 per group 32 symmetric
}}

scheme w4 {{
  weights int4 per group 32 symmetric
}}

scheme w8a8 {{
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}}

layers blocks[*].* use w4

apply {quantizer}() on blocks[*].*

search {{
  offer   w2, w4, w8a8, keep on blocks[*].*
  budget  4 bits
  samples 3
  length  32
  draws   2
  refine  12
  {more}
}}
"""


def search_recipe(mini: Mini, folder: Path, more: str = "", quantizer: str = "gptq") -> Path:
    """Written to the folder."""
    path = folder / "mini_search.qs"
    text = mini.recipe.parent / "text.txt"
    path.write_text(RECIPE.format(model=mini.model, text=text, more=more, quantizer=quantizer))
    return path


@pytest.fixture(scope="session")
def searched(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe, with the quantizer GPTQ."""
    return search_recipe(mini, tmp_path_factory.mktemp("searched"))
