"""Hypothesis strategies for whole recipes as syntax trees; each statement is written here in its canonical spelling."""

from __future__ import annotations

from hypothesis import strategies as st

from qspec.diagnostics import Span
from qspec.language import grammar
from qspec.language import syntax as s
from qspec.language.pieces import BLOCK_KINDS

AT = Span(0, 0)
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda n: n not in {"mse", "none", "module", "file", "rollouts", "tensor", "task"}
)
REFERENCES = NAMES.map("${}".format)
STRINGS = st.text(
    st.characters(codec="utf-8", exclude_characters='"', exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"]),
    max_size=12,
).map('"{}"'.format)
INTEGERS = st.integers(-(10**9), 10**9).map(str)
NUMBERS = INTEGERS | st.floats(-1e6, 1e6, allow_nan=False).map(repr)
COUNTS = NUMBERS | REFERENCES
QUOTED = STRINGS | REFERENCES
LITERALS = NUMBERS | STRINGS | NAMES
VALUES = LITERALS | REFERENCES


def written(form: str, *parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """The form with its gaps filled."""
    return st.tuples(*parts).map(lambda values: form.format(*values))


def some(one: st.SearchStrategy[str], least: int = 1, most: int = 3, by: str = ", ") -> st.SearchStrategy[str]:
    return st.lists(one, min_size=least, max_size=most).map(by.join)


def maybe(form: str, part: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.just("") | written(form, part)


def _index(low: int, length: int, kind: str) -> str:
    return {"every": "*", "one": str(low), "run": f"{low}..{low + length}"}[kind]


INDICES = st.builds(_index, st.integers(0, 40), st.integers(1, 9), st.sampled_from(["every", "one", "run"]))
SEGMENTS = st.one_of(
    st.just("*"),
    written("r{}", NAMES),
    written("r{}[{}]", NAMES, some(INDICES)),
    written("{{{}}}", some(NAMES, by=",")),
)
SELECTORS = some(some(SEGMENTS, most=4, by=".") | written("module({})", STRINGS))
ARGUMENTS = some(written("{} = {}", NAMES.filter(lambda n: n != "prompts"), VALUES), least=0)
TEXTS = QUOTED | written("file({}{})", QUOTED, maybe(", field = {}", QUOTED))
ROLLOUTS = written("rollouts({})", ARGUMENTS) | written("rollouts(prompts = {})", TEXTS)
MASKS = st.one_of(
    written("{}({}, {})", st.sampled_from(["uniform", "grid", "prefix"]), COUNTS, COUNTS),
    written("fixed({})", COUNTS),
    st.just("none"),
)
SHARES = written("{} {}", st.sampled_from(["masked", "unmasked"]), COUNTS) | st.just("certainty")
GRAINS = st.one_of(
    st.sampled_from(["tensor", "channel", "token"]),
    written("group {}", COUNTS),
    st.builds("block {}x{}".format, st.integers(1, 999), st.integers(1, 999)),
)
FORMATS = NAMES | REFERENCES | written("{}({})", NAMES, COUNTS)
KEYS = st.sampled_from(["weights", "activations"])
OPERANDS = written("{} none", KEYS) | written(
    "{} {} per {}{}{}",
    KEYS,
    FORMATS,
    GRAINS,
    st.sampled_from(["", " symmetric", " asymmetric"]),
    maybe(" clip {}", COUNTS | st.sampled_from(["mse", "none"])),
)
AMOUNTS = written("{} {}{}", COUNTS, NAMES, st.just("") | st.just(" memory") | written(" for {}", NAMES))


def numbers(*keys: str) -> st.SearchStrategy[str]:
    return written("{} {}", st.sampled_from(keys), COUNTS)


NELBO = written("nelbo on {}{}", TEXTS, maybe(" samples {}", COUNTS))
MEASURED = st.just("nelbo") | written("nelbo on {}", TEXTS) | NAMES | st.just('"boolq"')
REQUIRE = written("require {} loss <= {} {}", MEASURED, COUNTS, st.sampled_from(["%", "points"]))
TEXT_OF = {
    "recipe": written("family {}", some(NAMES)) | written("model {}{}", QUOTED, maybe(" revision {}", QUOTED)),
    "calibrate": st.one_of(
        written("text {}", TEXTS | ROLLOUTS),
        numbers("samples", "length", "draws", "seed"),
        written("mask {}", MASKS),
        written("weigh {}", some(SHARES)),
    ),
    "scheme": OPERANDS,
    "task": numbers("shots", "length", "steps", "block", "limit")
    | written("chat {}", st.sampled_from(("auto", "on", "off"))),
    "search": st.one_of(
        written("offer {} on {}", some(NAMES), SELECTORS),
        written("budget {}", some(AMOUNTS)),
        written("loss {} on {}", st.sampled_from(["kl", "nelbo"]), TEXTS),
        written("loss task {}", NAMES),
        numbers("samples", "length", "draws", "refine", "gap", "seed"),
        written("{} {}", st.sampled_from(["probe", "fused"]), NAMES | REFERENCES),
    ),
    "evaluate": NELBO | REQUIRE,
    "emit": written("kernels {} for {}", NAMES, some(NAMES)) | written("regime {}", some(NAMES)),
}


def tree(start: str, text: str) -> s.Tree:
    """The tree of a statement, which is spelled as it was written."""
    found, problems = grammar.parse(start, text)
    assert problems == []
    assert str(found) == text
    return found


def setting(kind: str) -> st.SearchStrategy[s.Tree | s.Block]:
    return TEXT_OF[kind].map(lambda text: tree(f"{kind}_body", text).trees()[0])


COMMENT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp", "Zs"]), max_size=10
).map(lambda t: f"# {t}".rstrip())
COMMENTS = st.builds(
    lambda before, after, blank: s.Comments(tuple(t for t, _ in before), after, blank, tuple(g for _, g in before)),
    st.lists(st.tuples(COMMENT, st.booleans()), max_size=2),
    st.none() | COMMENT,
    st.booleans(),
)
CLOSING = st.lists(COMMENT, max_size=1).map(lambda c: s.Comments(tuple(c), None, False, (False,) * len(c)))


def _block(kind: str, named: bool, settings: st.SearchStrategy[s.Tree | s.Block]) -> st.SearchStrategy[s.Block]:
    return st.builds(
        lambda name, items, opening, closing: s.Block(AT, kind, AT, name, tuple(items), opening, closing),
        NAMES.map(lambda name: s.Leaf("NAME", name, AT)) if named else st.none(),
        st.lists(st.builds(s.Item, settings, COMMENTS), max_size=4),
        st.none() | COMMENT,
        CLOSING,
    )


TASKS = _block("task", True, setting("task")).filter(lambda b: bool(b.items) or not (b.opening or b.closing.before))
LINES = {
    "version": st.just("qspec 1"),
    "extends": written("extends {}", STRINGS),
    "param": written("param {} = {}{}", NAMES, LITERALS, st.just("") | written(" in {}..{}", NUMBERS, NUMBERS)),
    "layers": written("layers {} {}", SELECTORS, st.just("keep") | written("use {}", NAMES)),
    "apply": written("apply {}({}) on {}", NAMES, ARGUMENTS, SELECTORS),
}


def statement(start: str) -> st.SearchStrategy[s.Tree]:
    return LINES[start].map(lambda text: tree(start, text))


STATEMENTS = st.one_of(
    *map(statement, LINES),
    *(
        _block(kind, kind in ("recipe", "scheme"), setting(kind) | TASKS if kind == "evaluate" else setting(kind))
        for kind in BLOCK_KINDS
    ),
)
FILES = st.builds(
    lambda items, closing: s.File("r.qs", tuple(items), (), closing),
    st.lists(st.builds(s.Item, STATEMENTS, COMMENTS), max_size=8),
    CLOSING,
)
