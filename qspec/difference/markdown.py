"""A difference as Markdown, for a pull request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from qspec.difference import words
from qspec.difference.changes import Difference, LayerChange, PassChange
from qspec.errors import visible


def render(found: Difference) -> str:
    """A table of totals, lists of what changed; kernels folded away."""
    models = f" on {code(words.both(found.models))}" if found.models else ""
    lines = [f"**{code(found.old)} → {code(found.new)}**{models}"]
    if not found:
        lines += ["", f"{words.SAME[0].upper()}{words.SAME[1:]}."]
    lines += _table(("", "before", "after", "change"), [map(plain, words.total(change)) for change in found.totals])
    layers = [_layer(change, found.models is not None) for change in found.layers]
    lines += _table(("layers", "", "scheme", "what changed"), layers)
    lines += _list("Passes", map(_pass, found.passes))
    lines += _list("Settings", (code(words.setting(change)) for change in found.settings))
    measured = [map(plain, words.measures(change)) for change in found.measured]
    lines += _table(("task", "measure", "before", "after", "95 % interval"), measured)
    if found.kernels:
        kernels = (f"- {one.kind} {code(one.name)}" for one in found.kernels)
        lines += ["", "<details><summary>Kernels</summary>", "", *kernels, "", "</details>"]
    for note in found.notes:
        lines += ["", f"<sub>{plain(note)}</sub>"]
    return "\n".join(lines) + "\n"


def _layer(change: LayerChange, counted: bool) -> Iterable[str]:
    facts = (f"{what} {code(before)} → {code(after)}" for what, before, after in words.details(change))
    return code(change.selector), words.modules(change, counted), code(words.headline(change)), "<br>".join(facts)


def _pass(change: PassChange) -> str:
    texts = " → ".join(code(text) for text in dict.fromkeys((change.before, change.after)) if text)
    return f"{change.kind} {texts} {words.moved(change)}".rstrip()


def _list(head: str, items: Iterable[str]) -> list[str]:
    lines = [f"- {item}" for item in items]
    return ["", f"{head}:", "", *lines] if lines else []


def _table(heads: Sequence[str], rows: Sequence[Iterable[str]]) -> list[str]:
    """Of cells that are Markdown already; nothing where there are no rows."""
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *escaped)]
    return ["", *lines] if rows else []


def plain(text: str) -> str:
    """A text in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>#~&!])", r"\\\1", visible(text).replace("\n", " "))


def code(text: str) -> str:
    """A text as code: more backticks around it than it has in a row."""
    shown = visible(text).replace("\n", " ")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{pad}{shown}{pad}{fence}"
