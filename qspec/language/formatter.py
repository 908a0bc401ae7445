"""The canonical format of a recipe: one statement a line, aligned columns, comments kept where they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qspec.diagnostics import RecipeError, Source
from qspec.language.parser import parse
from qspec.language.syntax import Block, Comments, File, Item, Leaf, Tree, spelled

WIDEST = 60  # a column is aligned over lines whose text before it is at most this long
TASK_WIDTH = 100


def format_source(text: str, path: str = "<recipe>") -> str:
    """The recipe in canonical format. Raises RecipeError where it cannot be parsed."""
    source = Source(path, text.replace("\r\n", "\n").replace("\r", "\n"))
    file, problems = parse(source)
    if problems:
        raise RecipeError(problems, {path: source})
    return format_file(file)


def format_file(file: File) -> str:
    """The syntax tree as text; it parses to an equal tree."""
    lines = _top(file.items)
    lines += _comment_lines(file.closing, 0, first=not lines)
    text = "\n".join(_joined(lines)).strip("\n")
    return text + "\n" if text else ""


@dataclass(frozen=True)
class Line:
    """One line of output: cells to be aligned with their neighbours (of the same `table`), and a comment
    after them."""

    cells: tuple[str, ...]
    comment: str | None = None
    indent: int = 0
    table: str = ""  # lines of one table, next to each other, share columns; "" is never aligned


_BLANK = Line(())


# --- structure ---


def _top(items: Sequence[Item]) -> list[Line]:
    lines: list[Line] = []
    before: Tree | Block | None = None
    for item in items:
        if before is not None and (isinstance(item.node, Block) or _table(before) != _table(item.node)):
            lines.append(_BLANK)
        lines += _item(item, 0, first=before is None)
        before = item.node
    return lines


def _table(node: Tree | Block) -> str:
    """Statements of one table stand together."""
    return node.rule if isinstance(node, Tree) else ""


def _item(item: Item, indent: int, first: bool) -> list[Line]:
    """The comments before, the statement, and the blank lines that were there."""
    comments = item.comments
    lines = _comment_lines(comments, indent, first)
    if comments.blank and (lines or not first):
        lines.append(_BLANK)
    return [*lines, *_node(item.node, comments.after, indent)]


def _comment_lines(comments: Comments, indent: int, first: bool) -> list[Line]:
    lines: list[Line] = []
    for text, gap in zip(comments.before, comments.gaps, strict=True):
        if gap and not (first and not lines):
            lines.append(_BLANK)
        lines.append(Line((text,), indent=indent))
    return lines


def _node(node: Tree | Block, comment: str | None, indent: int) -> list[Line]:
    if isinstance(node, Block):
        return _block(node, comment, indent)
    return [Line(_cells(node), comment, indent, node.rule if indent == 0 else "settings")]


def _block(block: Block, comment: str | None, indent: int) -> list[Line]:
    if block.kind == "task":
        short = _short_task(block)
        if short is not None:
            return [Line(("task", short), comment, indent, "settings")]
    name = f" {block.name.text}" if block.name else ""
    head = ("task", f"{name.strip()} {{") if block.kind == "task" else (f"{block.kind}{name} {{",)
    lines = [Line(head, block.opening, indent, "settings" if block.kind == "task" else "")]
    inner: list[Line] = []
    for i, item in enumerate(block.items):
        inner += _item(item, indent + 1, first=i == 0)
    inner += _comment_lines(block.closing, indent + 1, first=not inner)
    return [*lines, *inner, Line(("}",), comment, indent)]


def _short_task(block: Block) -> str | None:
    """The task on one line, or None where a comment inside or the length forbids it."""
    assert block.name is not None
    if block.opening or block.closing.before:
        return None
    parts = []
    for item in block.items:
        if item.comments.before or item.comments.after:
            return None
        parts.append(str(item.node))
    text = f"{block.name.text} {{ {'  '.join(parts)} }}" if parts else block.name.text
    return text if len(text) <= TASK_WIDTH else None


# --- one statement ---


_COLUMNS: dict[str, tuple[tuple[str, ...], ...]] = {  # rule -> what starts its columns after the first
    "version": (),
    "extends": (),
    "param": (("EQUAL",),),
    "layers": (("USE", "KEEP"),),
    "apply": (("ON",),),
    "operand": (("format", "NONE"), ("PER",), ("SYMMETRIC", "ASYMMETRIC"), ("CLIP",)),
}


def _cells(tree: Tree) -> tuple[str, ...]:
    """The statement as cells: each starts a column. A setting has one for its keyword, one for the rest."""
    columns = _COLUMNS.get(tree.rule)
    cells: list[list[Leaf]] = [[]]
    for place, part in enumerate(tree.parts):
        kind = part.kind if isinstance(part, Leaf) else part.rule
        starts = (
            [1] if columns is None and place == 1 else [c for c, kinds in enumerate(columns or (), 1) if kind in kinds]
        )
        cells += [[] for _ in range(len(cells), max(starts, default=0) + 1)]
        cells[-1] += part.leaves()
    return tuple(spelled(cell) for cell in cells)


# --- columns ---


def _joined(lines: Sequence[Line]) -> list[str]:
    """Aligned text lines, never two blank ones in a row."""
    code = [""] * len(lines)
    for start, end in _runs(lines, _share_columns):
        for i, text in enumerate(_aligned(lines[start:end])):
            code[start + i] = "  " * lines[start + i].indent + text
    for start, end in _runs(lines, _share_comments):
        _add_comments(code, lines, start, end)
    return [c for i, c in enumerate(code) if c or (i and code[i - 1])]


def _share_columns(a: Line, b: Line) -> bool:
    return bool(a.table) and a.table == b.table and a.indent == b.indent


def _share_comments(a: Line, b: Line) -> bool:
    """Comments after statements next to each other; not those after braces, and not comment lines."""
    statements = all(x.cells and x.cells[-1][-1:] != "{" and x.cells[0][0] not in "}#" for x in (a, b))
    return statements and a.indent == b.indent


def _runs(lines: Sequence[Line], together: Callable[[Line, Line], bool]) -> list[tuple[int, int]]:
    """Maximal stretches [start, end) of lines where each belongs together with the one before."""
    runs: list[tuple[int, int]] = []
    start = 0
    for i in range(1, len(lines) + 1):
        if i == len(lines) or not together(lines[i - 1], lines[i]):
            runs.append((start, i))
            start = i
    return runs


def _aligned(lines: Sequence[Line]) -> list[str]:
    """The cells of each line, padded to common columns; a cell wider than WIDEST does not widen its
    column."""
    columns = [c for c in range(max(len(line.cells) for line in lines)) if any(_cell(line, c) for line in lines)]
    widths = {c: max((len(_cell(line, c)) for line in lines if _pads(line, c)), default=0) for c in columns}
    return [" ".join(_cell(line, c).ljust(widths[c]) for c in columns).rstrip() for line in lines]


def _cell(line: Line, column: int) -> str:
    return line.cells[column] if column < len(line.cells) else ""


def _pads(line: Line, column: int) -> bool:
    """Whether the cell has a say in its column's width: not the last one of its line, and not overlong."""
    return any(line.cells[column + 1 :]) and len(line.cells[column]) <= WIDEST


def _add_comments(code: list[str], lines: Sequence[Line], start: int, end: int) -> None:
    """Comments at the ends of neighbouring lines start in one column."""
    widths = [len(code[i]) for i in range(start, end) if lines[i].comment and len(code[i]) <= WIDEST]
    column = max(widths, default=0)
    for i in range(start, end):
        if lines[i].comment:
            code[i] = f"{code[i].ljust(column)}  {lines[i].comment}"
