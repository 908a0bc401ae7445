"""Lark's trees -> the syntax tree of `qspec.language.syntax`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lark import Token, Tree

from qspec.diagnostics import Diagnostic, Span, quote
from qspec.language import syntax as s

MAX_INDEX = 4096
MAX_TERMS = 256  # in one selector: terms, names in braces, indices


class Builder:
    """Builds the node of one piece of source that starts at `offset`; `problems` are what the grammar
    cannot say."""

    def __init__(self, path: str, offset: int) -> None:
        self.path = path
        self.offset = offset
        self.problems: list[Diagnostic] = []

    def build(self, tree: Any) -> Any:
        """A Node; for a head its name (a Word); for a body the list of its settings."""
        method: Callable[[Tree], Any] = getattr(self, tree.data)
        return method(tree)

    # --- helpers ---

    def _span(self, part: Tree | Token) -> Span:
        place: Any = part if isinstance(part, Token) else part.meta
        return Span(self.offset + place.start_pos, self.offset + place.end_pos, self.path)

    def _report(self, code: str, message: str, part: Tree | Token, hint: str) -> None:
        self.problems.append(Diagnostic(code, message, self._span(part), hint))

    def _word(self, token: Any) -> s.Word:
        if len(token) > 64:
            self._report(
                "QS002",
                f"the name {quote(token, 20)} has {len(token)} characters",
                token,
                "names have at most 64",
            )
        return s.Word(self._span(token), str(token))

    def _number(self, token: Any) -> s.Number:
        text = str(token)
        if len(text) > 24:
            self._report(
                "QS009",
                f"the number {quote(text, 20)} has too many digits",
                token,
                "write at most 24 characters",
            )
            return s.Number(self._span(token), 0, "0")
        value: int | float = float(text) if any(c in text for c in ".eE") else int(text)
        if not math.isfinite(value):
            self._report("QS009", f"{quote(text)} is not a finite number", token, "write a smaller number")
        return s.Number(self._span(token), value, text)

    def _value(self, token: Any) -> Any:
        if token is None:
            return None
        match token.type:
            case "NUMBER":
                return self._number(token)
            case "STRING":
                return s.Text(self._span(token), str(token)[1:-1])
            case "REFERENCE":
                return s.Reference(self._span(token), str(token)[1:])
            case _:
                return self._word(token)

    def _all(self, tree: Tree) -> list[Any]:
        return [self.build(c) for c in tree.children if isinstance(c, Tree)]

    # --- lines ---

    def version(self, tree: Tree) -> s.Version:
        return s.Version(self._span(tree), self._number(tree.children[0]))

    def extends(self, tree: Tree) -> s.Extends:
        return s.Extends(self._span(tree), self._value(tree.children[0]))

    def param(self, tree: Tree) -> s.Param:
        name, value, low, high = tree.children
        built = self.build(value) if isinstance(value, Tree) else self._value(value)
        return s.Param(self._span(tree), self._word(name), built, self._value(low), self._value(high))

    def literal(self, tree: Tree) -> Any:
        return self._value(tree.children[0])

    value = literal

    def layers(self, tree: Tree) -> s.Layers:
        scheme = tree.children[1] if len(tree.children) > 1 else None
        selector: Any = tree.children[0]
        return s.Layers(self._span(tree), self.selector(selector), self._word(scheme) if scheme else None)

    def apply(self, tree: Tree) -> s.Apply:
        name, *middle, selector = tree.children
        arguments = tuple(self.build(a) for a in middle if isinstance(a, Tree))
        return s.Apply(self._span(tree), self._word(name), arguments, self.selector(selector))

    def argument(self, tree: Tree) -> s.Argument:
        name, value = tree.children
        return s.Argument(self._span(tree), self._word(name), self.build(value))

    # --- heads and bodies ---

    def recipe_head(self, tree: Tree) -> Any:
        return self._word(tree.children[0]) if tree.children else None

    scheme_head = recipe_head
    calibrate_head = search_head = evaluate_head = emit_head = recipe_head

    def recipe_body(self, tree: Tree) -> list[Any]:
        return self._all(tree)

    calibrate_body = scheme_body = search_body = evaluate_body = task_body = emit_body = recipe_body

    def calibrate_number(self, tree: Tree) -> s.Setting:
        key, value = tree.children
        return s.Setting(self._span(tree), self._word(key), self._value(value))

    task_number = search_setting = calibrate_number

    def model(self, tree: Tree) -> s.Model:
        key, name, revision = tree.children
        return s.Model(self._span(tree), self._word(key), self._value(name), self._value(revision))

    def text(self, tree: Tree) -> s.TextSetting:
        key, source = tree.children
        return s.TextSetting(self._span(tree), self._word(key), self.build(source))

    def text_named(self, tree: Tree) -> Any:
        return self._value(tree.children[0])

    def text_file(self, tree: Tree) -> s.FileSource:
        path, name = tree.children
        return s.FileSource(self._span(tree), self._value(path), self._value(name))

    def rollouts(self, tree: Tree) -> s.Rollouts:
        parts = [(part, self.build(part)) for part in tree.children if isinstance(part, Tree)]
        prompts = [(part, built) for part, built in parts if part.data == "prompts"]
        for part, _ in prompts[1:]:
            self._report("QS011", "`prompts` is given twice", part, "keep one of the two")
        arguments = tuple(built for part, built in parts if part.data == "argument")
        return s.Rollouts(self._span(tree), prompts[0][1] if prompts else None, arguments)

    def prompts(self, tree: Tree) -> Any:
        (words,) = self._all(tree)
        return words

    def weigh(self, tree: Tree) -> s.Weigh:
        return s.Weigh(self._span(tree), self._word(tree.children[0]), tuple(self._all(tree)))

    def share(self, tree: Tree) -> s.Share:
        key, number = (*tree.children, None)[:2]
        return s.Share(self._span(tree), self._word(key), self._value(number))

    def mask(self, tree: Tree) -> s.Mask:
        key, how = tree.children
        assert isinstance(how, Tree)
        kind: Any = how.data.removeprefix("mask_")
        return s.Mask(self._span(tree), self._word(key), kind, tuple(self._value(v) for v in how.children))

    def operand(self, tree: Tree) -> s.Operand:
        key, *rest = tree.children
        if len(rest) == 1:  # none
            return s.Operand(self._span(tree), self._word(key), None, None, None, None)
        number, grain, symmetry, clip = (*rest, None, None)[:4] if len(rest) < 4 else rest
        assert isinstance(number, Tree)
        assert isinstance(grain, Tree)
        return s.Operand(
            self._span(tree),
            self._word(key),
            s.FormatNode(self._span(number), self._value(number.children[0]), self._value(number.children[1]))
            if len(number.children) > 1
            else s.FormatNode(self._span(number), self._value(number.children[0]), None),
            self._grain(grain),
            self._word(symmetry) if symmetry is not None else None,
            self._value(clip.children[0]) if isinstance(clip, Tree) else None,
        )

    def _grain(self, tree: Tree) -> s.Grain:
        kind: Any = tree.data.removeprefix("per_")
        span = self._span(tree)
        if kind == "block":
            rows, columns = (int(n) for n in str(tree.children[0])[:16].split("x"))
            return s.Grain(span, kind, rows=rows, columns=columns)
        return s.Grain(span, kind, self._value(tree.children[0]) if tree.children else None)

    def offer(self, tree: Tree) -> s.Offer:
        _, *names, selector = tree.children
        return s.Offer(self._span(tree), tuple(self._word(n) for n in names), self.selector(selector))

    def budget(self, tree: Tree) -> s.BudgetSetting:
        return s.BudgetSetting(self._span(tree), self._word(tree.children[0]), tuple(self._all(tree)))

    def amount_stored(self, tree: Tree) -> s.Amount:
        number, unit, *regime = tree.children
        kind: Any = tree.data.removeprefix("amount_")
        named = self._word(regime[0]) if regime else None
        return s.Amount(self._span(tree), kind, self._value(number), self._word(unit), named)

    amount_memory = amount_time = amount_stored

    def loss(self, tree: Tree) -> s.LossSetting:
        key, *rest = tree.children
        if len(rest) == 1:
            (task,) = self._all(tree)
            return s.LossSetting(self._span(tree), self._word(key), None, None, task.name)
        measure, source = rest
        return s.LossSetting(self._span(tree), self._word(key), self._word(measure), self.build(source), None)

    def nelbo(self, tree: Tree) -> s.Nelbo:
        key, source, *rest = tree.children
        samples = self._value(rest[-1]) if rest and rest[-1] is not None else None
        return s.Nelbo(self._span(tree), self._word(key), self.build(source), samples)

    def task(self, tree: Tree) -> s.Block:
        span = self._span(tree)
        return s.Block(span, "task", span, self._word(tree.children[1]), ())

    def kernels(self, tree: Tree) -> s.Names:
        key, back_end, *targets = tree.children
        return s.Names(self._span(tree), self._word(key), self._word(back_end), tuple(self._word(t) for t in targets))

    def regime(self, tree: Tree) -> s.Names:
        key, *names = tree.children
        return s.Names(self._span(tree), self._word(key), None, tuple(self._word(n) for n in names))

    family = regime

    # --- selectors ---

    def selector(self, tree: Any) -> s.SelectorNode:
        terms = tuple(self.build(t) for t in tree.children)
        count = sum(
            1 if isinstance(t, s.ModuleTerm) else sum(len(g.names) + len(g.indices) for g in t.segments) for t in terms
        )
        if count > MAX_TERMS:
            self._report(
                "QS002",
                f"the selector has {count} parts",
                tree,
                f"write at most {MAX_TERMS}; use `*` or ranges",
            )
        return s.SelectorNode(self._span(tree), terms)

    def role(self, tree: Tree) -> s.RoleTerm:
        return s.RoleTerm(self._span(tree), tuple(self._all(tree)))

    def named(self, tree: Tree) -> s.Segment:
        name, *indices = tree.children
        built = tuple(self.build(i) for i in indices if isinstance(i, Tree))
        return s.Segment(self._span(tree), (self._word(name),), built)

    def set(self, tree: Tree) -> s.Segment:
        return s.Segment(self._span(tree), tuple(self._word(n) for n in tree.children), braces=True)

    def star(self, tree: Tree) -> s.Segment:
        return s.Segment(self._span(tree), ())

    def every(self, tree: Tree) -> s.Indices:
        return s.Indices(self._span(tree), None, None)

    def one(self, tree: Tree) -> s.Indices:
        index = self._index(tree.children[0])
        return s.Indices(self._span(tree), index, index)

    def run(self, tree: Tree) -> s.Indices:
        low, high = (self._index(t) for t in tree.children)
        if (low < 0) == (high < 0) and low > high:
            self._report("QS032", f"the range {low}..{high} is empty", tree, f"write {high}..{low}")
        return s.Indices(self._span(tree), low, high)

    def _index(self, token: Any) -> int:
        number = self._number(token)
        if isinstance(number.value, float) or abs(number.value) > MAX_INDEX:
            self._report(
                "QS032",
                f"{quote(number.text)} is not a block index",
                token,
                "write a whole number, such as 3 or -1",
            )
            return 0
        return number.value

    def module(self, tree: Tree) -> s.ModuleTerm:
        return s.ModuleTerm(self._span(tree), self._value(tree.children[0]))
