"""What is wrong with a recipe, as a value: `qspec.check`. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from qspec import passes
from qspec.diagnostics import Diagnostic, Source, errors, render_text, summary
from qspec.errors import InputError
from qspec.language import find_problems
from qspec.language.parser import read
from qspec.models.registry import FAMILIES


@dataclass(frozen=True)
class Checked:
    """problems: errors and warnings, in order. sources: the texts that their spans point into. As text it is what
    `qspec check` prints."""

    problems: tuple[Diagnostic, ...]
    sources: Mapping[str, Source] = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether there are no errors; there may be warnings."""
        return not errors(self.problems)

    def __str__(self) -> str:
        shown = [render_text(self.problems, self.sources)] if self.problems else []
        return "\n\n".join([*shown, summary(self.problems)])

    def _repr_html_(self) -> str:
        """For notebooks."""
        return f"<pre>{escape(str(self))}</pre>"


def check(recipe: str | Path, settings: Mapping[str, str] | None = None) -> Checked:
    """Every mistake in a recipe and its bases, without a model: what `qspec check` prints.

    settings: values of the recipe's parameters. Raises InputError where the file cannot be read.
    """
    try:
        source, problems = read(recipe)
    except OSError as error:
        what = f"the recipe cannot be read: {error.strerror or error}"
        raise InputError(what, where=str(recipe), hint="check the path; a recipe is a `.qs` file") from None
    if problems:
        return Checked(tuple(problems), {source.path: source})
    return Checked(*find_problems(source, passes.available(), settings or {}, FAMILIES))
