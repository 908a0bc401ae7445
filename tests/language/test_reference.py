"""The reference page: its examples are right and canonical, its lists are those of the code."""

from __future__ import annotations

import re
from dataclasses import fields

import lark
import pytest

from qspec import passes
from qspec.diagnostics import Source
from qspec.formats import NUMBER_FORMATS, Granularity, Scheme, TensorFormat
from qspec.language import load_source
from qspec.language.fields import settings
from qspec.language.formatter import format_source
from qspec.language.mistakes import keywords
from qspec.language.pieces import BLOCK_KINDS
from qspec.language.spec import BLOCK_CLASSES, REGIMES, TARGETS, TASKS, TEXTS, Rollouts
from qspec.models.llada import LLADA
from qspec.models.registry import FAMILIES
from qspec.planned import plan_of
from tests.language.fakes import PASSES, ROOT, codes
from tests.language.test_errors import completed

INT8 = NUMBER_FORMATS["int8"]
W8A8 = Scheme("w8a8", TensorFormat(INT8, Granularity("channel")), TensorFormat(INT8, Granularity("token")))

PAGE = (ROOT / "grammar" / "reference.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```qs\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_there_are_examples_of_every_block() -> None:
    assert len(EXAMPLES) >= 8
    for kind in (*BLOCK_KINDS, "param", "layers", "apply"):
        assert any(re.search(rf"^{kind}\b", e, re.MULTILINE) for e in EXAMPLES), kind


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples(example: str) -> None:
    assert codes(completed(example)) == []
    assert format_source(example) == example


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_can_be_compiled(example: str) -> None:
    """Every module of the stand-in has its fate, with a kernel that computes it."""
    loaded = load_source(Source("r.qs", completed(example)), passes.available(), {}, FAMILIES)
    plan = plan_of(loaded, "tiny-llada").plan
    assert len(plan.modules) == 6 * 7 + 2
    assert any(m.scheme for m in plan.modules)


def test_the_grammar_on_the_page_is_a_grammar() -> None:
    """Lark reads it, and with it every statement of the examples, as it does the real one."""
    (text,) = re.findall(r"<!-- grammar -->\n```\n(.*?)```\n<!-- end -->", PAGE, re.DOTALL)
    ignored = "%ignore /#[^\\n]*/\n%ignore /\\s+/\n"
    parser = lark.Lark(text + ignored, start=["file"], parser="lalr")
    for example in EXAMPLES:
        parser.parse(example)
    with pytest.raises(lark.UnexpectedInput):
        parser.parse("layers use w8a8")


def test_every_word_is_on_the_page() -> None:
    words = [*TARGETS, *REGIMES, *TASKS, *TEXTS, *FAMILIES, *passes.available(), *BLOCK_CLASSES]
    words += [key for block in BLOCK_CLASSES for key in keywords(block)]
    words += [name for name in NUMBER_FORMATS if not re.fullmatch(r"int[3-7]", name)]
    words += [name for cls in passes.available().values() for name in settings(cls)]
    words += [f"`{kind}(" for kind in ("uniform", "grid", "fixed", "prefix", "file", "rollouts")] + ["certainty"]
    words += [f"{field.name} = " for field in fields(Rollouts)]
    assert [word for word in words if word not in PAGE] == []


def test_the_fakes_have_the_real_contracts() -> None:
    real = passes.available()
    for name, fake in PASSES.items():
        for fact in ("requires", "establishes", "clears", "quantizes"):
            assert getattr(fake, fact) == getattr(real[name], fact), (name, fact)
        assert fake().whole_model == real[name]().whole_model
        entry = LLADA.outline([0])[1]
        assert fake().rotations(entry, W8A8) == real[name]().rotations(entry, W8A8)
        assert [*settings(fake)] == [*settings(real[name])]
