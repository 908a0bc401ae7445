"""The canonical format of a recipe: one statement a line, aligned columns, comments kept where they were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qspec.diagnostics import RecipeError, Source
from qspec.language import syntax as s
from qspec.language.parser import parse

WIDEST = 60  # a column is aligned over lines whose text before it is at most this long
TASK_WIDTH = 100


def format_source(text: str, path: str = "<recipe>") -> str:
    """The recipe in canonical format. Raises RecipeError where it cannot be parsed."""
    source = Source(path, text.replace("\r\n", "\n").replace("\r", "\n"))
    file, problems = parse(source)
    if problems:
        raise RecipeError(problems, {path: source})
    return format_file(file)


def format_file(file: s.File) -> str:
    """The syntax tree as text; it parses to an equal tree."""
    lines = _top(file.items)
    lines += _comment_lines(file.closing, 0, first=not lines)
    text = "\n".join(_joined(lines)).strip("\n")
    return text + "\n" if text else ""


def statement(node: s.Node) -> str:
    """One statement in canonical form on one line, without alignment."""
    return " ".join(cell for cell in _cells(node) if cell)


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


def _top(items: Sequence[s.Item]) -> list[Line]:
    lines: list[Line] = []
    before: s.Node | None = None
    for item in items:
        if before is not None and (isinstance(item.node, s.Block) or type(before) is not type(item.node)):
            lines.append(_BLANK)
        lines += _item(item, 0, first=before is None)
        before = item.node
    return lines


def _item(item: s.Item, indent: int, first: bool) -> list[Line]:
    """The comments before, the statement, and the blank lines that were there."""
    comments = item.comments
    lines = _comment_lines(comments, indent, first)
    if comments.blank and (lines or not first):
        lines.append(_BLANK)
    return [*lines, *_node(item.node, comments.after, indent)]


def _comment_lines(comments: s.Comments, indent: int, first: bool) -> list[Line]:
    lines: list[Line] = []
    for text, gap in zip(comments.before, comments.gaps, strict=True):
        if gap and not (first and not lines):
            lines.append(_BLANK)
        lines.append(Line((text,), indent=indent))
    return lines


def _node(node: s.Node, comment: str | None, indent: int) -> list[Line]:
    if isinstance(node, s.Block):
        return _block(node, comment, indent)
    return [Line(_cells(node), comment, indent, type(node).__name__ if indent == 0 else "settings")]


def _block(block: s.Block, comment: str | None, indent: int) -> list[Line]:
    if block.kind == "task":
        short = _short_task(block)
        if short is not None:
            return [Line(("task", short), comment, indent, "settings")]
    name = f" {block.name.name}" if block.name else ""
    head = ("task", f"{name.strip()} {{") if block.kind == "task" else (f"{block.kind}{name} {{",)
    lines = [Line(head, block.opening, indent, "settings" if block.kind == "task" else "")]
    inner: list[Line] = []
    for i, item in enumerate(block.items):
        inner += _item(item, indent + 1, first=i == 0)
    inner += _comment_lines(block.closing, indent + 1, first=not inner)
    return [*lines, *inner, Line(("}",), comment, indent)]


def _short_task(block: s.Block) -> str | None:
    """The task on one line, or None where a comment inside or the length forbids it."""
    assert block.name is not None
    if block.opening or block.closing.before:
        return None
    parts = []
    for item in block.items:
        if item.comments.before or item.comments.after:
            return None
        parts.append(" ".join(_cells(item.node)))
    text = f"{block.name.name} {{ {'  '.join(parts)} }}" if parts else block.name.name
    return text if len(text) <= TASK_WIDTH else None


# --- one statement ---


def _cells(node: s.Node) -> tuple[str, ...]:
    """The statement as cells: each starts a column."""
    match node:
        case s.Version():
            return (f"qspec {node.number.text}",)
        case s.Extends():
            return (f"extends {_value(node.path)}",)
        case s.Param():
            limits = f" in {node.low.text}..{node.high.text}" if node.low and node.high else ""
            return (f"param {node.name.name}", f"= {_value(node.value)}{limits}")
        case s.Layers():
            return (f"layers {node.selector}", f"use {node.scheme.name}" if node.scheme else "keep")
        case s.Apply():
            arguments = ", ".join(_argument(a) for a in node.arguments)
            return (f"apply {node.name.name}({arguments})", f"on {node.selector}")
        case s.Setting():
            return (node.key.name, _value(node.value))
        case s.Operand():
            return _operand(node)
    return _other_cells(node)


def _other_cells(node: s.Node) -> tuple[str, ...]:
    match node:
        case s.Model():
            revision = f" revision {_value(node.revision)}" if node.revision else ""
            return (node.key.name, _value(node.id) + revision)
        case s.TextSetting():
            return (node.key.name, _words(node.source))
        case s.Mask():
            numbers = f"({', '.join(map(_value, node.numbers))})" if node.numbers else ""
            return (node.key.name, node.kind + numbers)
        case s.Weigh():
            return (node.key.name, ", ".join(map(_share, node.shares)))
        case s.Offer():
            return ("offer", f"{', '.join(c.name for c in node.choices)} on {node.selector}")
        case s.BudgetSetting():
            return (node.key.name, ", ".join(map(amount_text, node.amounts)))
        case s.LossSetting():
            measure = f"{node.measure.name} on " if node.measure else ""
            subject = _words(node.source) if node.source else f"task {node.task.name if node.task else ''}"
            return (node.key.name, measure + subject)
        case s.Nelbo():
            samples = f" samples {_value(node.samples)}" if node.samples else ""
            return (node.key.name, f"on {_words(node.source)}{samples}")
        case s.Names():
            subject = f"{node.subject.name} for " if node.subject else ""
            return (node.key.name, subject + ", ".join(n.name for n in node.names))
        case s.Block():
            return (node.kind, node.name.name if node.name else "")
    raise TypeError(f"no format for {type(node).__name__}")


def _operand(node: s.Operand) -> tuple[str, ...]:
    if node.format is None or node.grain is None:
        return (node.key.name, "none")
    bits = f"({_value(node.format.bits)})" if node.format.bits else ""
    grain = {
        "group": f"group {_value(node.grain.size)}" if node.grain.size else "",
        "block": f"block {node.grain.rows}x{node.grain.columns}",
    }
    return (
        node.key.name,
        _value(node.format.name) + bits,
        f"per {grain.get(node.grain.kind, node.grain.kind)}",
        node.symmetry.name if node.symmetry else "",
        f"clip {_value(node.clip)}" if node.clip else "",
    )


def _argument(node: s.Argument) -> str:
    return f"{node.name.name} = {_value(node.value)}"


def _share(node: s.Share) -> str:
    return f"{node.key.name} {_value(node.number)}" if node.number else node.key.name


def amount_text(node: s.Amount) -> str:
    """`12 ms for block_decode`."""
    after = {"stored": "", "memory": " memory", "time": f" for {node.regime.name}" if node.regime else ""}
    return f"{_value(node.number)} {node.unit.name}{after[node.kind]}"


def _words(node: s.Words | s.Rollouts) -> str:
    match node:
        case s.FileSource():
            name = f", field = {_value(node.field_)}" if node.field_ else ""
            return f"file({_value(node.path)}{name})"
        case s.Rollouts():
            prompts = [f"prompts = {_words(node.prompts)}"] if node.prompts else []
            return f"rollouts({', '.join([*prompts, *map(_argument, node.arguments)])})"
    return _value(node)


def _value(node: s.Value) -> str:
    match node:
        case s.Number():
            return node.text
        case s.Text():
            return f'"{node.value}"'
        case s.Reference():
            return f"${node.name}"
    return node.name


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
