"""The words that may come next in a recipe, for editors: what the grammar takes there, and what has such a name.

Everything before the place is read as far as it makes sense; what is broken elsewhere in the file does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qspec.diagnostics import Source
from qspec.formats import NUMBER_FORMATS
from qspec.language import grammar
from qspec.language.fields import settings, words
from qspec.language.merge import Merged
from qspec.language.pieces import BLOCK_KINDS, LINE_KINDS, Braces, Piece, cut
from qspec.language.reference import statements, takes
from qspec.language.resolve import BACK_ENDS
from qspec.language.spec import (
    BLOCK_CLASSES,
    BUDGET_UNITS,
    LOSSES,
    REGIMES,
    TARGETS,
    TASKS,
    TEXTS,
    Pass,
    Rollouts,
)
from qspec.models.family import Family
from qspec.models.known import known_models

BEGUN = re.compile(r"\$?\w*$")  # the word that is being typed

Kind = Literal["keyword", "setting", "pass", "scheme", "param", "role", "format", "value", "file"]


@dataclass(frozen=True)
class Completion:
    """A word that may come next, and what it is for. detail: what it takes, or how it was declared."""

    word: str
    doc: str = ""
    kind: Kind = "keyword"
    detail: str = ""


@dataclass(frozen=True)
class Names:
    """What has a name: passes and families, and the recipe's own schemes and params, with how they are declared.

    bases: files that `extends` can name. own: the families whose roles the recipe can select; none, all.
    """

    passes: Mapping[str, type[Pass]]
    families: Mapping[str, Family] = field(default_factory=dict)
    schemes: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    bases: Sequence[str] = ()
    own: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        merged: Merged,
        passes: Mapping[str, type[Pass]],
        families: Mapping[str, Family],
        bases: Sequence[str] = (),
    ) -> Names:
        """Those of a recipe with its bases."""
        schemes = {name: "; ".join(map(str, block.settings)) for name, block in merged.schemes.items()}
        params = {name: str(node) for name, node in merged.params.items()}
        family = merged.settings.get("recipe", {}).get("family")
        own = [leaf.text for leaf in family.values if leaf.text in families] if family else []
        return cls(passes, families, schemes, params, bases, own)


def completions(source: Source, offset: int, names: Names) -> list[Completion]:
    """The words that may stand at an offset, in place of the one begun there (`BEGUN`).

    Nothing where the text before makes no sense, and in comments.
    """
    text = source.text[:offset]
    line = text.rpartition("\n")[2]
    bare = re.sub(r'"[^"]*"', '""', line)
    if "#" in bare.partition('"')[0] or re.search(r'""[^"]*#', bare):
        return []
    quoted = bare.count('"') % 2 == 1
    text = text[: text.rindex('"')] if quoted else BEGUN.sub("", text)
    block, code = _place(Source(source.path, text))
    if not code.strip() and block is None:
        said = statements()
        return [] if quoted else [Completion(word, said[word]) for word in (*LINE_KINDS, *BLOCK_KINDS)]
    start = f"{block}_body" if block else LINE_KINDS.get(code.split()[0], "")
    expected = _expected(start, code)
    if quoted:
        return _strings(start, code, names) if "STRING" in expected else []
    found = _keywords(block, expected)
    if "NAME" in expected:
        found = [*_named(start, code, names), *found]
    if "REFERENCE" in expected:
        found += [Completion(f"${name}", "", "param", text) for name, text in names.params.items()]
    return list({one.word: one for one in reversed(found)}.values())[::-1]  # a name says more than its keyword


def _place(source: Source) -> tuple[str | None, str]:
    """The block that a text ends in, and the code of the statement that it ends in."""
    items, block = cut(source).items, None
    while items and isinstance(items[-1], Braces) and items[-1].close == len(source.text):
        block, items = items[-1].word.split(maxsplit=1)[0], items[-1].items
    last = items[-1] if items and source.text.rpartition("\n")[2].strip() else None
    return block, source.text[last.start :] if isinstance(last, Piece) else ""


def _expected(start: str, code: str) -> frozenset[str]:
    """The terminals that may follow a code."""
    if start not in grammar.STARTS:
        return frozenset()
    try:
        grammar.parse(start, f"{code}\0")  # no recipe holds this character
    except grammar.Mismatch as mismatch:
        return mismatch.expected if mismatch.start == len(code) else frozenset()
    return frozenset()


def _keywords(block: str | None, expected: Iterable[str]) -> list[Completion]:
    known = settings(BLOCK_CLASSES[block]) if block else {}
    found = sorted(word for one in expected if (word := grammar.literals().get(one, "")).isidentifier())
    return [_setting(known[word]) if word in known else Completion(word) for word in found]


def _setting(setting: Any) -> Completion:
    return Completion(setting.key, setting.doc, "setting", takes(setting))


# --- names ---

_Find = Callable[[str, Names], list[Completion]]


def _values(found: Iterable[str], kind: Kind = "value") -> list[Completion]:
    return [Completion(word, "", kind) for word in found]


def _passes(_: str, names: Names) -> list[Completion]:
    return [Completion(name, (cls.__doc__ or "").partition("\n")[0], "pass") for name, cls in names.passes.items()]


def _parameters(code: str, names: Names) -> list[Completion]:
    called = re.search(r"(\w+)\s*\([^()]*$", code)
    cls = Rollouts if called and called[1] == "rollouts" else names.passes.get(called[1]) if called else None
    if cls is None or called is None:
        return []
    given = set(re.findall(r"(\w+)\s*=", called[0]))
    return [_setting(one) for key, one in settings(cls).items() if key not in given]


def _parameter_values(code: str, names: Names) -> list[Completion]:
    called = re.search(r"(\w+)\s*\([^()]*?(\w+)\s*=\s*$", code)
    cls = names.passes.get(called[1]) if called else None
    setting = settings(cls).get(called[2]) if cls and called else None
    return _values(words(setting.hint)) if setting else []


def _schemes(_: str, names: Names) -> list[Completion]:
    return [Completion(name, "", "scheme", text) for name, text in names.schemes.items()]


def _offered(code: str, names: Names) -> list[Completion]:
    return [*_schemes(code, names), Completion("keep", "stays in 16 bits", "value")]


def _formats(*_: object) -> list[Completion]:
    return [Completion(name, one.about, "format") for name, one in NUMBER_FORMATS.items()]


_STEP = r"(?:\w+(?:\[[^\]\n]*\])?|\{[^{}\n]*\}|\*)"
_TERM = re.compile(rf"((?:{_STEP}\.)*)(\{{[\w\s,]*)?$")


def _roles(code: str, names: Names) -> list[Completion]:
    """The names that can follow the steps of a term."""
    term = _TERM.search(code)
    assert term is not None  # it matches nothing, at the end
    typed = [set(re.findall(r"[A-Za-z_]\w*", re.sub(r"\[.*?\]", "", step))) for step in _steps(term[1])]
    found: dict[str, None] = {}
    for name in names.own or names.families:
        for entry in names.families[name].outline([0, 1]):  # the first may be dense where the others are not
            path = [name for name, _ in entry.role.path]
            fits = all(not step or name in step for step, name in zip(typed, path, strict=False))
            if fits and len(path) > len(typed):
                found[path[len(typed)]] = None
    if typed and found and not term[2]:
        found["*"] = None
    return [Completion(_INDEXED.get(name, name), _ROLE_DOCS.get(name, ""), "role") for name in found]


def _steps(text: str) -> list[str]:
    return re.findall(rf"{_STEP}(?=\.)", text)


_INDEXED = {"blocks": "blocks[*]", "experts": "experts[*]"}
_ROLE_DOCS = {
    "blocks": "the model's blocks: `blocks[3]`, `blocks[0, 4..7, -1]`, `blocks[*]`",
    "head": "can only be kept",
    "embedding": "can only be kept",
    "experts": "the experts of a mixture: `experts[3]`, `experts[0..7]`, `experts[*]`",
    "shared": "the expert that every token passes",
    "router": "can only be kept, and is where nothing names it",
    "*": "everything below",
}

_NAMED: Sequence[tuple[str, str, _Find]] = (  # start rule, what the code ends in, what may follow; the first one counts
    ("layers", r"\buse\s*$", _schemes),
    ("layers", "", _roles),
    ("apply", r"^apply\s*$", _passes),
    ("apply", r"=\s*$", _parameter_values),
    ("apply", r"[(,]\s*$", lambda code, names: (_parameters if "(" in _open(code) else _roles)(code, names)),
    ("apply", r"\bon\b", _roles),
    ("calibrate_body", r"[(,]\s*$", _parameters),
    ("recipe_body", r"\bfamily\b[\w\s,]*$", lambda _, names: _values(names.families)),
    ("scheme_body", r"\b(weights|activations)\s*$", _formats),
    ("search_body", r"\boffer\b((?!\bon\b)[\w\s,])*$", _offered),
    ("search_body", r"\bon\b", _roles),
    ("search_body", r"\bfor\s*$", lambda *_: _values(REGIMES)),
    ("search_body", r"[\d.]\s*$", lambda *_: _values(BUDGET_UNITS)),
    ("search_body", r"\bloss\s*$", lambda *_: _values(LOSSES)),
    ("search_body", r"\btask\s*$", lambda *_: _values(TASKS)),
    ("evaluate_body", r"\b(task|require)\s*$", lambda *_: _values(TASKS)),
    ("evaluate_body", r"\brequire\s*$", lambda *_: _values(TASKS)),
    ("emit_body", r"\bkernels\s*$", lambda *_: _values(BACK_ENDS)),
    ("emit_body", r"\bfor\b[\w\s,]*$", lambda *_: _values(TARGETS)),
    ("emit_body", r"\bregime\b[\w\s,]*$", lambda *_: _values(REGIMES)),
)


def _open(code: str) -> str:
    """The brackets of a code that are not closed."""
    depth = ""
    for char in code:
        if char in "([{":
            depth += char
        elif char in ")]}":
            depth = depth[:-1]
    return depth


def _named(start: str, code: str, names: Names) -> list[Completion]:
    for rule, ending, find in _NAMED:
        if rule == start and re.search(ending, code):
            return find(code, names)
    block, last = start.removesuffix("_body"), code.split()[-1:]
    known = settings(BLOCK_CLASSES[block]) if block in BLOCK_CLASSES else {}
    return [word for key in last if key in known for word in _values(words(known[key].hint))]


def _strings(start: str, code: str, names: Names) -> list[Completion]:
    """What a string that begins here can say."""
    if start == "extends":
        return _values(names.bases, "file")
    if start == "recipe_body":
        return _values(known_models()) if re.search(r"\bmodel\s*$", code) else []
    return _values(TEXTS) if re.search(r"\b(text|on|prompts\s*=)\s*$", code) else []
