"""What is written -> values of the spec's classes, by their fields; whatever does not fit is reported and left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any, TypeVar, get_origin

from qspec.diagnostics import Edit, Span, quote
from qspec.language.fields import Known, Refusal, Setting, convert, members, metadata, required, settings, shown, words
from qspec.language.merge import Merged
from qspec.language.params import Params
from qspec.language.syntax import VALUES, Leaf, Tree

T = TypeVar("T")


class Reader:
    """Reads the values of one recipe; its params are looked up."""

    def __init__(self, merged: Merged, params: Params) -> None:
        self.merged = merged
        self.params = params

    def block(self, cls: type[T], nodes: Mapping[str, Tree], block: str, **given: Any) -> T:
        """An instance from the settings of a block; one that does not fit keeps its default, after a report."""
        for key, setting in settings(cls).items():
            if key in nodes and setting.field not in given:
                value = self._setting(setting, nodes[key], block)
                if value is not None:
                    given[setting.field] = value
        return cls(**given)

    def _setting(self, setting: Setting, node: Tree, block: str) -> Any:
        if node.rule == "setting":
            return self.value(setting.hint, node.values[0], f"`{setting.key}` of `{block}`")
        if any(get_origin(one) is tuple for one in members(setting.hint)):
            (known,) = (m for m in metadata(setting.hint) if isinstance(m, Known))
            return self.names(node.trees("names")[0], known)
        return self.composed(setting.hint, node, setting.key)

    def composed(self, hint: Any, node: Tree, owner: str) -> Any:
        """An instance of that class of `hint` whose rule the tree, or its one tree, is of; None after a report."""
        classes = [one for one in members(hint) if is_dataclass(one)]
        for tree in (node, *node.trees()):
            for cls in classes:
                if getattr(cls, "rule", "") == tree.rule:
                    return self.instance(cls, tree, tree.key.text if _is_call(cls, tree) else owner)
        (cls,) = classes  # spelled behind the keyword itself
        return self.instance(cls, node._replace(parts=node.parts[1:]), owner)

    def instance(self, cls: Any, tree: Tree, owner: str) -> Any:
        """An instance from values in the order of its fields, `name = value`, `name value`, or `name` alone, which is
        true; None after a report."""
        before = len(self.merged.problems)
        given: dict[str, Any] = {}
        spans: dict[str, Span] = {}
        fields = settings(cls)
        for part in tree.parts:
            setting = next((one for one in fields.values() if one.field not in given), None)
            if isinstance(part, Tree) and part.rule == "share":
                self._share(fields[part.key.text], part, owner, given, spans)
            elif isinstance(part, Tree) and part.rule != "argument" and setting:
                given[setting.field] = self.composed(setting.hint, part, setting.key)
            elif isinstance(part, Leaf) and setting and part.text in words(setting.hint):
                given[setting.field] = part.text
            elif isinstance(part, Leaf) and setting and part.kind in VALUES:
                what = f"`{setting.key}` of `{owner}`" if given else f"`{owner}`"
                given[setting.field] = self.value(setting.hint, part, what)
        if tree.trees("argument"):
            given |= self.arguments(cls, tree, owner)
        return cls(**given) if len(self.merged.problems) == before else None

    def _share(self, setting: Setting, part: Tree, owner: str, given: dict[str, Any], spans: dict[str, Span]) -> None:
        if setting.key in spans:
            self.merged.twice(quote(setting.key), part.span, spans[setting.key])
            return
        spans[setting.key] = part.span
        what = f"`{setting.key}` of `{owner}`"
        given[setting.field] = self.value(setting.hint, part.values[0], what) if part.values else True

    def arguments(self, cls: type, tree: Tree, owner: str) -> dict[str, Any]:
        """`name = value` pairs as fields of `cls`."""
        fields, given, spans = settings(cls), dict[str, Any](), dict[str, Span]()
        for argument in tree.trees("argument"):
            name, value = argument.key, argument.parts[-1]
            if name.text not in fields:
                self.merged.unknown("QS024", f"parameter of `{owner}` called", name, fields, "parameters")
            elif name.text in spans:
                self.merged.twice(f"parameter {quote(name.text)}", name.span, spans[name.text])
            else:
                spans[name.text] = name.span
                setting = fields[name.text]
                found = (
                    self.composed(setting.hint, value, name.text)
                    if isinstance(value, Tree)
                    else self.value(setting.hint, value, f"`{name.text}` of `{owner}`", "QS025")
                )
                if found is not None:
                    given[setting.field] = found
        for key in required(cls):
            if key not in spans:
                message = f"`{owner}` needs its parameter {quote(key)}"
                self.merged.report("QS024", message, tree.span, f"write {owner}({key} = ...)")
        return given

    def value(self, hint: Any, leaf: Leaf, what: str, code: str | None = None) -> Any:
        """The value of a word, or None after a report (of `code`, or by what is wrong: type or range)."""
        plain = self.params.plain(leaf)
        if plain is None:
            return None
        try:
            found = convert(hint, plain)
        except Refusal as refusal:
            edits = (Edit(leaf.span, refusal.guess),) if refusal.guess else ()
            code = code or ("QS016" if refusal.kind == "type" else "QS017")
            message = f"{what}: {shown(plain)} {refusal.why}"
            self.merged.report(code, message, leaf.span, refusal.hint, edits, self.params.notes(leaf))
            return None
        for known in metadata(hint):
            if isinstance(known, Known) and found not in known.names:
                self.merged.unknown(known.code, known.kind, plain._replace(span=leaf.span), known.names, known.plural)
        return found

    def names(self, tree: Tree, known: Known) -> tuple[str, ...]:
        """A list of names, each known (where any is) and given once."""
        found: dict[str, Span] = {}
        given = [word.text for word in tree.values]
        for word in tree.values:
            if known.names and word.text not in known.names:
                self.merged.unknown(known.code, known.kind, word, known.names, known.plural, given)
            elif word.text in found:
                self.merged.twice(f"{known.kind} {quote(word.text)}", word.span, found[word.text])
            found.setdefault(word.text, word.span)
        return tuple(found)


def _is_call(cls: Any, tree: Tree) -> bool:
    """Whether the tree starts with a name of its own, as `file("x.txt")` does, and not with the first field's value."""
    first = next(iter(settings(cls).values()))
    return tree.key.kind not in VALUES and tree.key.text not in words(first.hint)
