"""The stories behind the diagnostics' codes, read from grammar/errors.md.

Each section there is `## QS012 Title`, prose, then two fenced recipes: a bad one and a good one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from qspec import resources

_SECTION = re.compile(
    r"^## (?P<code>QS\d{3}) (?P<title>[^\n]+)\n(?P<prose>.*?)"
    r"^```qs bad\n(?P<bad>.*?)^```\n.*?^```qs good\n(?P<good>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Explanation:
    """What a code means, why it matters, and how it looks wrong and right."""

    code: str
    title: str
    prose: str
    bad: str
    good: str

    def render(self) -> str:
        """As `qspec explain` prints it."""
        return "\n".join(
            [f"{self.code}: {self.title}", "", self.prose, "", "Wrong:", "", _indented(self.bad), "",
             "Right:", "", _indented(self.good)]
        )  # fmt: skip


@cache
def explanations() -> dict[str, Explanation]:
    """Code -> explanation, in order."""
    text = (resources.grammar() / "errors.md").read_text(encoding="utf-8")
    found = [
        Explanation(m["code"], m["title"].strip(), m["prose"].strip(), m["bad"].rstrip(), m["good"].rstrip())
        for m in _SECTION.finditer(text)
    ]
    return {e.code: e for e in found}


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.split("\n"))
