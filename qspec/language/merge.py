"""A recipe with its bases, flattened: one set of statements, later files over earlier ones.

recipe, calibrate, emit   setting by setting
search                    setting by setting; offers as `layers`
scheme                    the whole scheme of that name
nelbo, task, require      by text, by task name and by what it is about
param                     by name
layers                    the base's rules first: later rules win
apply                     all of the base's, or all of the recipe's own: their order is one thought
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from qspec.diagnostics import Diagnostic, Edit, Note, Source, Span, closest, quote
from qspec.language.parser import parse, read
from qspec.language.syntax import Block, File, Leaf, Tree
from qspec.language.versions import VERSION

Read = Callable[[Path], tuple[Source, list[Diagnostic]]]  # of a base, as `parser.read`

MAX_BASES = 8


@dataclass
class Merged:
    """All statements that count, by what they are about. `partial`: some could not be parsed. read: reads bases."""

    path: str
    read: Read = read
    name: Leaf | None = None
    settings: dict[str, dict[str, Tree]] = field(default_factory=dict)  # block -> keyword -> setting
    blocks: dict[str, Block] = field(default_factory=dict)
    schemes: dict[str, Block] = field(default_factory=dict)
    params: dict[str, Tree] = field(default_factory=dict)
    nelbo: dict[str, Tree] = field(default_factory=dict)
    tasks: dict[str, Block] = field(default_factory=dict)
    gates: dict[str, Tree] = field(default_factory=dict)
    layers: list[Tree] = field(default_factory=list)
    offers: list[Tree] = field(default_factory=list)
    applies: list[Tree] = field(default_factory=list)
    sources: dict[str, Source] = field(default_factory=dict)
    problems: list[Diagnostic] = field(default_factory=list)
    partial: bool = False

    def report(
        self,
        code: str,
        message: str,
        span: Span,
        hint: str,
        edits: tuple[Edit, ...] = (),
        notes: tuple[Note, ...] = (),
    ) -> None:
        """Records an error."""
        self.problems.append(Diagnostic(code, message, span, hint, edits=edits, notes=notes))

    def warn(self, code: str, message: str, span: Span, hint: str, edits: tuple[Edit, ...] = ()) -> None:
        """Records a warning."""
        self.problems.append(Diagnostic(code, message, span, hint, "warning", edits))

    def unknown(
        self, code: str, kind: str, word: Leaf, known: Any, plural: str | None = None, given: Collection[str] = ()
    ) -> None:
        """There is no such thing; did you mean another? given: those that stand beside it already."""
        name = str(word.value)
        guess = closest(name, [one for one in known if one not in given], digits=kind != "target")
        written = f'"{guess}"' if word.kind == "STRING" else guess
        hint = (
            f"did you mean `{guess}`?"
            if guess
            else f"known {plural or kind + 's'}: {', '.join(sorted(known)) or 'none'}"
        )
        unsure = self.partial and kind == "scheme"  # it may be declared where something could not be parsed
        edits = (Edit(word.span, str(written)),) if guess and not unsure else ()
        self.report(code, f"there is no {kind} {quote(name)}", word.span, hint, edits)

    def twice(self, what: str, span: Span, first: Span) -> None:
        notes = (Note(first, "first here"),)
        self.report("QS011", f"{what} is given twice", span, "keep one of the two", notes=notes)


def merge_file(path: str | Path) -> Merged:
    """Reads the recipe and its bases. Raises OSError where the recipe itself cannot be read."""
    source, problems = read(path)
    return merge(source, tuple(problems))


def merge(source: Source, problems: tuple[Diagnostic, ...] = (), read: Read = read) -> Merged:
    """Flattens an already read source; its bases are looked up beside it, by `read`."""
    merged = Merged(source.path, read)
    _add(merged, source, problems, (Path(source.path),))
    return merged


def _add(merged: Merged, source: Source, problems: tuple[Diagnostic, ...], chain: tuple[Path, ...]) -> None:
    merged.sources[source.path] = source
    merged.problems += problems
    if problems:
        merged.partial = True
        return
    file, found = parse(source)
    merged.problems += found
    merged.partial |= bool(found)
    _check_version(merged, file, source)
    one = _One(merged)
    for item in file.items:
        if isinstance(item.node, Tree) and item.node.rule == "extends":
            _extend(merged, item.node, source, chain, one)
    for item in file.items:
        one.add(item.node)
    one.finish()


def _check_version(merged: Merged, file: File, source: Source) -> None:
    nodes = [item.node for item in file.items]
    versions = [node for node in nodes if isinstance(node, Tree) and node.rule == "version"]
    if not versions:
        if not merged.partial:
            start = Span(0, 0, source.path)
            message = "the recipe does not say which version of the language it is written in"
            merged.report("QS008", message, start, f"start the file with `qspec {VERSION}`",
                          (Edit(start, f"qspec {VERSION}\n\n"),))  # fmt: skip
        return
    number = versions[0].values[0]
    if number.value != VERSION or not isinstance(number.value, int):
        message = f"{quote(number.text)} is no version of the language"
        merged.report("QS008", message, number.span, f"write `qspec {VERSION}`", (Edit(number.span, str(VERSION)),))
    if nodes[0] is not versions[0] and not merged.partial:
        merged.report("QS008", "the version is not the first statement", versions[0].span, "move it to the first line")


def _extend(merged: Merged, node: Tree, source: Source, chain: tuple[Path, ...], one: _One) -> None:
    if one.first("extends", node.span, "`extends`"):
        return
    path = node.values[0]
    name = str(path.value)
    wrong = _base_problem(name)
    target = Path(source.path).parent / name
    if not wrong and target.resolve() in [path.resolve() for path in chain]:
        wrong = "it extends itself"
    if not wrong and len(chain) > MAX_BASES:
        wrong = f"it is more than {MAX_BASES} files deep"
    if wrong:
        message = f"{quote(name)} cannot be extended: {wrong}"
        merged.report("QS013", message, path.span, "name a `.qs` file by a path relative to this one")
        merged.partial = True
        return
    try:
        base, problems = merged.read(target)
    except OSError as error:
        message = f"{quote(name)} cannot be read: {error.strerror or 'it is not a file'}"
        hint = f"the path starts at the folder of {quote(Path(source.path).name)}; check its spelling"
        merged.report("QS013", message, path.span, hint)
        merged.partial = True
        return
    if base.path not in merged.sources:
        _add(merged, base, tuple(problems), (*chain, target))


def _base_problem(path: str) -> str | None:
    if not path.endswith(".qs"):
        return "it is not a `.qs` file"
    if PurePosixPath(path).is_absolute() or Path(path).is_absolute() or "\\" in path:
        return "it is not a relative path with `/`"
    return None


class _One:
    """Adds the statements of one file to what its bases gave."""

    def __init__(self, merged: Merged) -> None:
        self.merged = merged
        self.seen: dict[str, Span] = {}
        self.applies: list[Tree] = []

    def first(self, key: str, span: Span, what: str) -> bool:
        """Reports the second one of a kind in this file; returns whether it was."""
        before = self.seen.setdefault(key, span)
        if before is span:
            return False
        hint = "keep one of the two"
        self.merged.report("QS011", f"{what} is given twice", span, hint, notes=(Note(before, "first here"),))
        return True

    def add(self, node: Tree | Block) -> None:
        if isinstance(node, Block):
            self._add_block(node)
            return
        match node.rule:
            case "version":
                self.first("version", node.span, "the version")
            case "param":
                name = node.values[0]
                if not self.first(f"param {name.text}", name.span, f"param {quote(name.text)}"):
                    self.merged.params[name.text] = node
            case "layers":
                self.merged.layers.append(node)
            case "apply":
                self.applies.append(node)

    def finish(self) -> None:
        if self.applies:
            self.merged.applies = self.applies

    def _add_block(self, block: Block) -> None:
        if block.kind == "scheme":
            assert block.name is not None
            name = block.name.text
            if not self.first(f"scheme {name}", block.name.span, f"scheme {quote(name)}"):
                self._settings(block, f"scheme {name}")
                self.merged.schemes[name] = block
            return
        if self.first(block.kind, block.head, f"the block `{block.kind}`"):
            return
        self.merged.blocks[block.kind] = block
        if block.kind == "recipe":
            self.merged.name = block.name
        if block.kind == "evaluate":
            for item in block.items:
                self._add_request(item.node)
        else:
            self.merged.settings.setdefault(block.kind, {}).update(self._settings(block, block.kind))
            self.merged.offers += [tree for tree in block.settings if tree.rule == "offer"]

    def _settings(self, block: Block, where: str) -> Mapping[str, Tree]:
        settings: dict[str, Tree] = {}
        for tree in block.settings:
            key = tree.key
            if tree.rule != "offer" and not self.first(f"{where}/{key.text}", key.span, f"`{key.text}`"):
                settings[key.text] = tree
        return settings

    def _add_request(self, node: Tree | Block) -> None:
        if isinstance(node, Tree) and node.rule == "require":
            measure = node.parts[1]
            about = str(Tree(node.rule, node.parts[1:-4], node.span))
            if isinstance(measure, Leaf) and measure.kind == "STRING":
                about = str(measure.value)
            if not self.first(f"require {about}", node.span, f"`require {about}`"):
                self.merged.gates[about] = node
            return
        if isinstance(node, Tree):
            (text,) = node.trees()
            if not self.first(f"nelbo {text}", node.span, "this `nelbo`"):
                self.merged.nelbo[str(text)] = node
            return
        assert node.name is not None
        name = str(node.name.value)
        if not self.first(f"task {name}", node.name.span, f"task {quote(name)}"):
            self._settings(node, f"task {name}")
            self.merged.tasks[name] = node
