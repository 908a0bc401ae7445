"""Device functions as text: the definitions of `codegen/device` that a kernel uses, and what these use in turn.

The modules are read, not imported, so that rendering a kernel needs no Triton.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import lru_cache
from graphlib import TopologicalSorter
from pathlib import Path

from qspec import resources

LONGEST_LINE = 120


@dataclass(frozen=True)
class Definition:
    """A function, class or constant of a device module: its text, and the names that it mentions.

    place: of its module, behind those that it imports, and its line there. spaced: whether blank lines go around it.
    """

    name: str
    text: str
    mentions: frozenset[str]
    place: tuple[int, int]
    spaced: bool


@dataclass(frozen=True)
class Library:
    """Definitions of all device modules, and where names of other packages come from: ("triton.language", "tl")."""

    definitions: dict[str, Definition]
    imports: dict[str, ast.Import | ast.ImportFrom]


def with_device_functions(text: str) -> str:
    """A rendered file with what it uses of the device modules between its docstring and the rest."""
    tree = ast.parse(text)
    lines, end = text.strip("\n").splitlines(), tree.body[0].end_lineno or 0
    top, rest = "\n".join(lines[:end]), "\n".join(lines[end:]).strip("\n")
    mentioned = frozenset[str]().union(*(_mentions(node) for node in tree.body))
    own = {_defined(node) for node in tree.body}
    return f"{top}\n\n{closure(mentioned - own)}\n\n\n{rest}\n"


def closure(names: frozenset[str]) -> str:
    """What a file needs that mentions these names: imports, then definitions, each behind those that it uses."""
    library = read_library(resources.codegen() / "device")
    mentioned = set(names)
    wanted, found = list(names), dict[str, Definition]()
    while wanted:
        definition = library.definitions.get(wanted.pop())
        if definition is not None and definition.name not in found:
            found[definition.name] = definition
            mentioned |= definition.mentions
            wanted += definition.mentions
    parts = [_import_lines(library, mentioned)]
    before = True
    for definition in sorted(found.values(), key=lambda one: one.place):
        parts.append(("\n\n\n" if definition.spaced or before else "\n") + definition.text)
        before = definition.spaced
    return "".join(parts)


@lru_cache(maxsize=1)
def read_library(folder: Path) -> Library:
    """Raises ValueError where two modules define one name."""
    modules = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))}
    trees = {name: ast.parse(text) for name, text in modules.items()}
    definitions: dict[str, Definition] = {}
    imports: dict[str, ast.Import | ast.ImportFrom] = {}
    for number, name in enumerate(_in_order(trees)):
        lines = modules[name].splitlines()
        for node in trees[name].body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                if isinstance(node, ast.Import) or not node.level:
                    imports |= {alias.asname or alias.name: node for alias in node.names}
                continue
            if (defined := _defined(node)) is None:
                continue
            if defined in definitions:
                raise ValueError(f"{defined} is defined twice in {folder}")
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
            text = "\n".join(lines[first - 1 : node.end_lineno])
            spaced = not isinstance(node, ast.Assign | ast.AnnAssign)
            definitions[defined] = Definition(defined, text, _mentions(node), (number, first), spaced)
    return Library(definitions, imports)


def _defined(node: ast.stmt) -> str | None:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if not isinstance(node, ast.Assign | ast.AnnAssign):
        return None
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    return target.id if isinstance(target, ast.Name) else None


def _mentions(node: ast.AST) -> frozenset[str]:
    """Names that a definition takes from outside: a function's arguments, and what it assigns to, are its own."""
    names = [one for one in ast.walk(node) if isinstance(one, ast.Name)]
    own = set[str]()
    if isinstance(node, ast.FunctionDef):
        own = {one.arg for one in ast.walk(node) if isinstance(one, ast.arg)}
        own |= {name.id for name in names if isinstance(name.ctx, ast.Store)}
    return frozenset(name.id for name in names) - own


def _in_order(trees: dict[str, ast.Module]) -> list[str]:
    """Modules behind those that they import from; otherwise by name, so that a kernel's bytes are always the same."""
    sorter = TopologicalSorter(
        {
            name: {n.module for n in tree.body if isinstance(n, ast.ImportFrom) and n.level and n.module}
            for name, tree in trees.items()
        }
    )
    sorter.prepare()
    order: list[str] = []
    while ready := sorted(sorter.get_ready()):
        order += ready
        sorter.done(*ready)
    return order


def _import_lines(library: Library, mentioned: set[str]) -> str:
    """Sorted as ruff sorts them: whole modules first."""
    whole, single = set[str](), dict[str, set[str]]()
    for name in mentioned & library.imports.keys():
        node = library.imports[name]
        alias = next(one for one in node.names if name == (one.asname or one.name))
        spelled = alias.name if alias.asname is None else f"{alias.name} as {alias.asname}"
        if isinstance(node, ast.ImportFrom):
            single.setdefault(str(node.module), set()).add(spelled)
        else:
            whole.add(spelled)
    lines = [f"import {name}" for name in sorted(whole)]
    return "\n".join([*lines, *(_import_from(name, sorted(single[name])) for name in sorted(single))])


def _import_from(module: str, names: list[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= LONGEST_LINE:
        return line
    return "\n".join([f"from {module} import (", *(f"    {name}," for name in names), ")"])
