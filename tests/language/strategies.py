"""Hypothesis strategies for whole recipes as syntax trees, and for their text in loose layout."""

from __future__ import annotations

from hypothesis import strategies as st

from qspec.diagnostics import Span
from qspec.language import syntax as s
from qspec.language.pieces import BLOCK_KINDS

AT = Span(0, 0)
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(
    lambda n: n not in {"mse", "none", "module", "file", "rollouts", "tensor"}
)
WORDS = NAMES.map(lambda n: s.Word(AT, n))
REFERENCES = NAMES.map(lambda n: s.Reference(AT, n))
STRINGS = st.text(
    st.characters(codec="utf-8", exclude_characters='"', exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"]),
    max_size=12,
).map(lambda t: s.Text(AT, t))
INTEGERS = st.integers(-(10**9), 10**9).map(lambda n: s.Number(AT, n, str(n)))
FLOATS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: s.Number(AT, x, repr(x)))
NUMBERS = INTEGERS | FLOATS
COUNTS = NUMBERS | REFERENCES
QUOTED = STRINGS | REFERENCES
LITERALS = NUMBERS | STRINGS | WORDS
VALUES = LITERALS | REFERENCES


def _indices(low: int, length: int, kind: str) -> s.Indices:
    if kind == "every":
        return s.Indices(AT, None, None)
    return s.Indices(AT, low, low + (length if kind == "run" and low + length != 0 else 0))


INDICES = st.builds(_indices, st.integers(0, 40), st.integers(1, 9), st.sampled_from(["every", "one", "run"]))
SEGMENTS = st.one_of(
    st.just(s.Segment(AT, ())),
    st.builds(
        lambda w, i: s.Segment(AT, (w,), tuple(i)),
        NAMES.map(lambda n: s.Word(AT, f"r{n}")),
        st.lists(INDICES, max_size=3),
    ),
    st.builds(lambda ws: s.Segment(AT, tuple(ws), braces=True), st.lists(WORDS, min_size=1, max_size=3)),
)
ROLES = st.lists(SEGMENTS, min_size=1, max_size=4).map(lambda g: s.RoleTerm(AT, tuple(g)))
MODULES = STRINGS.map(lambda t: s.ModuleTerm(AT, t))
SELECTORS = st.lists(ROLES | MODULES, min_size=1, max_size=3).map(lambda t: s.SelectorNode(AT, tuple(t)))
ARGUMENTS = st.lists(st.builds(lambda n, v: s.Argument(AT, n, v), WORDS, VALUES), max_size=3).map(tuple)

TEXTS = st.one_of(
    QUOTED,
    st.builds(lambda p, f: s.FileSource(AT, p, f), QUOTED, st.none() | QUOTED),
)
ROLLOUTS = st.builds(
    lambda p, a: s.Rollouts(AT, p, tuple(x for x in a if x.name.name != "prompts")), st.none() | TEXTS, ARGUMENTS
)


def _key(*names: str) -> st.SearchStrategy[s.Word]:
    return st.sampled_from(names).map(lambda n: s.Word(AT, n))


MASKS = st.one_of(
    st.builds(
        lambda k, kind, a, b: s.Mask(AT, k, kind, (a, b)),
        _key("mask"),
        st.sampled_from(["uniform", "grid", "prefix"]),
        COUNTS,
        COUNTS,
    ),
    st.builds(lambda k, a: s.Mask(AT, k, "fixed", (a,)), _key("mask"), COUNTS),
    st.builds(lambda k: s.Mask(AT, k, "none", ()), _key("mask")),
)
SHARES = st.one_of(
    st.builds(lambda k, n: s.Share(AT, k, n), _key("masked", "unmasked"), COUNTS),
    _key("certainty").map(lambda k: s.Share(AT, k, None)),
)
WEIGHTS = st.builds(lambda k, x: s.Weigh(AT, k, tuple(x)), _key("weigh"), st.lists(SHARES, min_size=1, max_size=3))
GRAINS = st.one_of(
    st.sampled_from(["tensor", "channel", "token"]).map(lambda k: s.Grain(AT, k)),
    COUNTS.map(lambda n: s.Grain(AT, "group", n)),
    st.builds(lambda r, c: s.Grain(AT, "block", None, r, c), st.integers(1, 999), st.integers(1, 999)),
)
FORMATS = st.one_of(
    (WORDS | REFERENCES).map(lambda w: s.FormatNode(AT, w, None)),
    st.builds(lambda w, n: s.FormatNode(AT, w, n), WORDS, COUNTS),
)
CLIPS = COUNTS | _key("mse", "none")
OPERANDS = st.one_of(
    st.builds(
        lambda k, f, g, y, c: s.Operand(AT, k, f, g, y, c),
        _key("weights", "activations"),
        FORMATS,
        GRAINS,
        st.none() | _key("symmetric", "asymmetric"),
        st.none() | CLIPS,
    ),
    _key("weights", "activations").map(lambda k: s.Operand(AT, k, None, None, None, None)),
)
NELBO = st.builds(lambda k, t, n: s.Nelbo(AT, k, t, n), _key("nelbo"), TEXTS, st.none() | COUNTS)
AMOUNTS = st.one_of(
    st.builds(lambda n, u: s.Amount(AT, "stored", n, u), COUNTS, WORDS),
    st.builds(lambda n, u: s.Amount(AT, "memory", n, u), COUNTS, WORDS),
    st.builds(lambda n, u, r: s.Amount(AT, "time", n, u, r), COUNTS, WORDS, WORDS),
)
SETTINGS = {
    "recipe": st.one_of(
        st.builds(
            lambda k, n: s.Names(AT, k, None, tuple(n)),
            _key("family"),
            st.lists(WORDS, min_size=1, max_size=3),
        ),
        st.builds(lambda k, i, r: s.Model(AT, k, i, r), _key("model"), QUOTED, st.none() | QUOTED),
    ),
    "calibrate": st.one_of(
        st.builds(lambda k, t: s.TextSetting(AT, k, t), _key("text"), TEXTS | ROLLOUTS),
        st.builds(lambda k, v: s.Setting(AT, k, v), _key("samples", "length", "draws", "seed"), COUNTS),
        MASKS,
        WEIGHTS,
    ),
    "scheme": OPERANDS,
    "task": st.builds(lambda k, v: s.Setting(AT, k, v), _key("shots", "length", "steps", "block", "limit"), COUNTS),
    "search": st.one_of(
        st.builds(lambda c, x: s.Offer(AT, tuple(c), x), st.lists(WORDS, min_size=1, max_size=3), SELECTORS),
        st.builds(
            lambda k, a: s.BudgetSetting(AT, k, tuple(a)), _key("budget"), st.lists(AMOUNTS, min_size=1, max_size=3)
        ),
        st.builds(lambda k, m, t: s.LossSetting(AT, k, m, t, None), _key("loss"), _key("kl", "nelbo"), TEXTS),
        st.builds(lambda k, t: s.LossSetting(AT, k, None, None, t), _key("loss"), WORDS),
        st.builds(
            lambda k, v: s.Setting(AT, k, v), _key("samples", "length", "draws", "refine", "gap", "seed"), COUNTS
        ),
        st.builds(lambda k, v: s.Setting(AT, k, v), _key("probe", "fused"), WORDS | REFERENCES),
    ),
    "emit": st.one_of(
        st.builds(
            lambda k, b, n: s.Names(AT, k, b, tuple(n)),
            _key("kernels"),
            WORDS,
            st.lists(WORDS, min_size=1, max_size=3),
        ),
        st.builds(
            lambda k, n: s.Names(AT, k, None, tuple(n)),
            _key("regime"),
            st.lists(WORDS, min_size=1, max_size=3),
        ),
    ),
}
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


def _item(node: s.Node, comments: s.Comments) -> s.Item:
    return s.Item(node, comments)


def _block(kind: str, named: bool) -> st.SearchStrategy[s.Block]:
    return st.builds(
        lambda name, items, opening, closing: s.Block(AT, kind, AT, name, tuple(items), opening, closing),
        WORDS if named else st.none(),
        st.lists(st.builds(_item, SETTINGS[kind], COMMENTS), max_size=4),
        st.none() | COMMENT,
        CLOSING,
    )


TASKS = _block("task", True).filter(lambda b: bool(b.items) or not (b.opening or b.closing.before))
SETTINGS["evaluate"] = NELBO | TASKS
STATEMENTS = st.one_of(
    INTEGERS.map(lambda n: s.Version(AT, n)),
    STRINGS.map(lambda t: s.Extends(AT, t)),
    st.builds(
        lambda n, v, r: s.Param(AT, n, v, *(r or (None, None))),
        WORDS,
        LITERALS,
        st.none() | st.tuples(NUMBERS, NUMBERS),
    ),
    st.builds(lambda x, w: s.Layers(AT, x, w), SELECTORS, st.none() | WORDS),
    st.builds(lambda n, a, x: s.Apply(AT, n, a, x), WORDS, ARGUMENTS, SELECTORS),
    *(_block(kind, kind in ("recipe", "scheme")) for kind in BLOCK_KINDS),
)
FILES = st.builds(
    lambda items, closing: s.File("r.qs", tuple(items), (), closing),
    st.lists(st.builds(_item, STATEMENTS, COMMENTS), max_size=8),
    CLOSING,
)
