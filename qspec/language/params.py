"""`param NAME = VALUE` and `$NAME`: typed values, set by a later file or by --set, standing where a value
may stand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qspec.diagnostics import Edit, Note, Span, closest, quote
from qspec.language.fields import shown
from qspec.language.merge import Merged
from qspec.language.syntax import Leaf, Tree

_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,2})?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class _Declared:
    """`param name = value in low..high`."""

    name: Leaf
    value: Leaf
    low: Leaf | None = None
    high: Leaf | None = None


class Params:
    """The recipe's params with their values."""

    def __init__(self, merged: Merged, settings: Mapping[str, str]) -> None:
        self.merged = merged
        self.declared = {name: _Declared(*node.values) for name, node in merged.params.items()}
        self.values = {name: node.value for name, node in self.declared.items()}
        self.used: set[str] = set()
        self.bad: set[str] = set()  # reported: what they would cause is not
        for name, text in settings.items():
            self._set(name, text)
        for name, node in self.declared.items():
            self._check_range(name, node)

    def plain(self, leaf: Leaf) -> Leaf | None:
        """The value itself, a reference looked up; None after a report."""
        if leaf.kind != "REFERENCE":
            return leaf
        name = str(leaf.value)
        self.used.add(name)
        if name in self.bad:
            return None
        value = self.values.get(name)
        if value is not None:
            return value
        guess = closest(name, self.values)
        if not (self.merged.partial and guess is None):
            hint = f"did you mean `${guess}`?" if guess else f"declare it: `param {name} = ...`"
            edits = (Edit(leaf.span, f"${guess}"),) if guess and not self.merged.partial else ()
            self.merged.report("QS014", f"there is no param {quote(name)}", leaf.span, hint, edits)
        return None

    def notes(self, leaf: Leaf) -> tuple[Note, ...]:
        """Where the value of a reference comes from."""
        name = str(leaf.value)
        if leaf.kind == "REFERENCE" and name in self.declared:
            text = f"`${name}` is {shown(self.values[name]).strip('`')}"
            return (Note(self.merged.params[name].span, text),)
        return ()

    def substituted(self, tree: Tree) -> Tree:
        """The tree with its references replaced by their values."""
        return tree.mapped(lambda leaf: self.plain(leaf) or leaf)

    def check_used(self) -> None:
        """Warns of params that nothing refers to."""
        if self.merged.partial:
            return
        for name, node in self.declared.items():
            if name not in self.used and node.name.span.path == self.merged.path:
                message = f"param {quote(name)} is not used"
                self.merged.warn("QS019", message, node.name.span, f"write `${name}` where it belongs, or remove it")

    def _set(self, name: str, text: str) -> None:
        node = self.declared.get(name)
        start = Span(0, 0, self.merged.path)
        if node is None:
            guess = closest(name, self.declared)
            known = ", ".join(sorted(self.declared)) or "none"
            hint = f"did you mean `--set {guess}=...`?" if guess else f"params of this recipe: {known}"
            if not self.merged.partial:
                self.merged.report("QS014", f"--set names {quote(name)}, which is no param of the recipe", start, hint)
            return
        value = _read(text, node.value)
        if value is None:
            kind = {"NUMBER": "number", "STRING": "string", "NAME": "word"}[node.value.kind]
            message = f"--set {name}: {quote(text)} is not a {kind}, as the param's default {shown(node.value)} is"
            self._bad(name, message, node.value.span, f"give a {kind}")
            return
        self.values[name] = value

    def _check_range(self, name: str, node: _Declared) -> None:
        if node.low is None or node.high is None:
            return
        value, span = self.values[name], node.value.span
        limits = f"{node.low.text}..{node.high.text}"
        if value.kind != "NUMBER":
            self._bad(name, f"param {quote(name)} has a range but is not a number", span, "remove the range")
        elif _number(node.low) > _number(node.high):
            between = node.low.span.cover(node.high.span)
            self._bad(name, f"the range {limits} is empty", between, "write the smaller number first")
        elif not _number(node.low) <= _number(value) <= _number(node.high):
            message = f"param {quote(name)} is {value.text}, outside of its range {limits}"
            self._bad(name, message, span, f"give a value in {limits}")

    def _bad(self, name: str, message: str, span: Span, hint: str) -> None:
        self.bad.add(name)
        self.merged.report("QS015", message, span, hint)


def _number(leaf: Leaf) -> float:
    return float(leaf.text)


def _read(text: str, like: Leaf) -> Leaf | None:
    """The text of a --set as a value of the default's type, at the default's place."""
    match like.kind:
        case "NUMBER":
            whole = not any(c in text for c in ".eE")
            fits = bool(_NUMBER.fullmatch(text)) and (whole or isinstance(like.value, float))
        case "STRING":
            fits, text = '"' not in text and text.isprintable(), f'"{text}"'
        case _:
            fits = bool(_WORD.fullmatch(text))
    return like._replace(text=text) if fits else None
