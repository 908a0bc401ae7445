"""`param NAME = VALUE` and `$NAME`: typed values, set by a later file or by --set, standing where a value
may stand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from qspec.diagnostics import Edit, Note, Span, closest, quote
from qspec.language import syntax as s
from qspec.language.convert import Plain, shown
from qspec.language.merge import Merged

_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,2})?")
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class Params:
    """The recipe's params with their values."""

    def __init__(self, merged: Merged, settings: Mapping[str, str]) -> None:
        self.merged = merged
        self.declared = merged.params
        self.values: dict[str, Plain] = {name: node.value for name, node in self.declared.items()}
        self.used: set[str] = set()
        self.bad: set[str] = set()  # reported: what they would cause is not
        for name, text in settings.items():
            self._set(name, text)
        for name, node in self.declared.items():
            self._check_range(name, node)

    def plain(self, node: s.Value | None) -> Plain | None:
        """The value itself, a reference looked up; None after a report (or for None)."""
        if not isinstance(node, s.Reference):
            return node
        self.used.add(node.name)
        if node.name in self.bad:
            return None
        value = self.values.get(node.name)
        if value is not None:
            return value
        guess = closest(node.name, self.values)
        if not (self.merged.partial and guess is None):
            hint = f"did you mean `${guess}`?" if guess else f"declare it: `param {node.name} = ...`"
            edits = (Edit(node.span, f"${guess}"),) if guess else ()
            self.merged.report("QS014", f"there is no param {quote(node.name)}", node.span, hint, edits)
        return None

    def notes(self, node: s.Node) -> tuple[Note, ...]:
        """Where the value of a reference comes from."""
        if isinstance(node, s.Reference) and node.name in self.declared:
            value = self.values[node.name]
            return (Note(self.declared[node.name].span, f"`${node.name}` is {shown(value).strip('`')}"),)
        return ()

    def substitute(self, argument: s.Argument) -> s.Argument:
        """The argument with its reference replaced by the value."""
        plain = self.plain(argument.value)
        return argument if plain is None else replace(argument, value=plain)

    def check_used(self) -> None:
        """Warns of params that nothing refers to."""
        if self.merged.partial:
            return
        for name, node in self.declared.items():
            if name not in self.used and node.span.path == self.merged.path:
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
            kind = {"Number": "number", "Text": "string", "Word": "word"}[type(node.value).__name__]
            message = f"--set {name}: {quote(text)} is not a {kind}, as the param's default {shown(node.value)} is"
            self._bad(name, message, node.value.span, f"give a {kind}")
            return
        self.values[name] = value

    def _check_range(self, name: str, node: s.Param) -> None:
        if node.low is None or node.high is None:
            return
        value, span = self.values[name], node.value.span
        limits = f"{node.low.text}..{node.high.text}"
        if not isinstance(value, s.Number):
            self._bad(name, f"param {quote(name)} has a range but is not a number", span, "remove the range")
        elif node.low.value > node.high.value:
            between = node.low.span.cover(node.high.span)
            self._bad(name, f"the range {limits} is empty", between, "write the smaller number first")
        elif not node.low.value <= value.value <= node.high.value:
            message = f"param {quote(name)} is {value.text}, outside of its range {limits}"
            self._bad(name, message, span, f"give a value in {limits}")

    def _bad(self, name: str, message: str, span: Span, hint: str) -> None:
        self.bad.add(name)
        self.merged.report("QS015", message, span, hint)


def _read(text: str, like: Plain) -> Plain | None:
    """The text of a --set as a value of the default's type, at the default's place."""
    match like:
        case s.Number():
            if not _NUMBER.fullmatch(text):
                return None
            whole = not any(c in text for c in ".eE")
            if isinstance(like.value, int) and not whole:
                return None
            return s.Number(like.span, int(text) if whole else float(text), text)
        case s.Text():
            return None if '"' in text or not text.isprintable() else s.Text(like.span, text)
    return s.Word(like.span, text) if _WORD.fullmatch(text) else None
