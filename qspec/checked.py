"""What is wrong with a recipe, as a value: `qspec.check`. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from qspec import passes
from qspec.diagnostics import Diagnostic, Source, errors, render_text, summary
from qspec.errors import InputError
from qspec.language import Understood, understand
from qspec.language.parser import read
from qspec.models.registry import FAMILIES


@dataclass(frozen=True)
class Checked:
    """problems: errors and warnings, in order. sources: the texts that their spans point into. fragment: whether the
    recipe is none by itself, and can only be extended. As text it is what `qspec check` prints."""

    problems: tuple[Diagnostic, ...]
    sources: Mapping[str, Source] = field(repr=False)
    fragment: bool = field(default=False, repr=False)

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
        return check_source(*read(recipe), settings)
    except OSError as error:
        raise unreadable(error, str(recipe)) from None


def unreadable(error: OSError, path: str) -> InputError:
    """For a recipe's file that cannot be read."""
    what = f"the recipe cannot be read: {error.strerror or error}"
    return InputError(what, where=path, hint="check the path; a recipe is a `.qs` file")


def check_source(
    source: Source, problems: Sequence[Diagnostic] = (), settings: Mapping[str, str] | None = None
) -> Checked:
    """The same of a text that is already here; problems: why it is no recipe."""
    if problems:
        return Checked(tuple(problems), {source.path: source})
    found = understand(source, passes.available(), settings or {}, FAMILIES)
    fragment = "recipe" not in found.merged.blocks
    return Checked((*found.problems, *lock_warnings(found)), found.merged.sources, fragment)


def lock_warnings(found: Understood) -> tuple[Diagnostic, ...]:
    """What is stale in the lock beside a recipe, if there is one."""
    if found.spec is None or not Path(found.spec.source).with_suffix(".lock").is_file():
        return ()
    from qspec.lock import lock_problems

    return lock_problems(found.spec, found.merged.blocks["recipe"].head)
