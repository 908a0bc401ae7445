"""Versions of the language: which one a file is written in, and how a file of an older one becomes one of this.

A file states its version in its first statement, `qspec 1`, which reads the same in every version. A file of another
version is not read any further: its words may mean something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from qspec.diagnostics import Diagnostic, Edit, Source, Span, apply_edits

VERSION = 1
Upgrade = Callable[
    [Source], Sequence[Edit]
]  # what makes a file one of the next version, but for the number that it states
UPGRADES: Mapping[int, Upgrade] = {}  # by the version that they start from; there is one version so far

_STATED = re.compile(r"(?:\s|#[^\n]*\n)*qspec[ \t]+([0-9]{1,9})(?![^\s#])")


def stated(source: Source) -> tuple[int, Span] | None:
    """The version in a file's first statement, and where it stands; None where that states none."""
    found = _STATED.match(source.text)
    return (int(found[1]), Span(found.start(1), found.end(1), source.path)) if found else None


def other_version(source: Source) -> Diagnostic | None:
    """Why a file of another version than this one's is not read."""
    found = stated(source)
    if found is None or found[0] == VERSION:
        return None
    number, span = found
    if number > VERSION:
        message = f"this file is written in version {number} of the language, and this qspec reads version {VERSION}"
        return Diagnostic("QS008", message, span, "install a newer qspec")
    if number not in UPGRADES:
        edits = (Edit(span, str(VERSION)),)
        return Diagnostic("QS008", f"there is no version {number}", span, f"write `qspec {VERSION}`", edits=edits)
    message = f"this file is written in version {number} of the language, and this qspec reads version {VERSION}"
    return Diagnostic("QS008", message, span, "upgrade it: qspec fix FILE")


def upgraded(source: Source) -> Source:
    """The file in this version, each step by its table. The same where it is of this version, or of one without a way
    here: `other_version` tells."""
    while (found := stated(source)) and found[0] < VERSION and found[0] in UPGRADES:
        number, span = found
        edits = [*UPGRADES[number](source), Edit(span, str(number + 1))]
        source = replace(source, text=apply_edits(source.text, edits))
    return source
