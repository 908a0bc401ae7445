"""The extension for VS Code: its grammar's words are the language's, and recipes get the scopes that their parse says.

QSPEC_UPDATE_GOLDENS=1 writes the words into the grammar.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from qspec.cli import COMMANDS
from qspec.diagnostics import Source
from qspec.formats import NUMBER_FORMATS
from qspec.language import grammar
from qspec.language.mistakes import keywords
from qspec.language.parser import parse
from qspec.language.pieces import TOP
from qspec.language.spec import BLOCK_CLASSES
from qspec.language.syntax import Block, Leaf, Tree
from qspec.models.registry import FAMILIES
from tests.language.fakes import ROOT

FOLDER = ROOT / "examples" / "editors"
TEXTMATE = FOLDER / "vscode" / "syntaxes" / "qspec.tmLanguage.json"
VIM = FOLDER / "vim" / "syntax" / "qspec.vim"
RECIPES = [*sorted((ROOT / "recipes").rglob("*.qs")), ROOT / "tests" / "language" / "every_construct.qs"]


def words() -> dict[str, list[str]]:
    """Kind of word -> all of them."""
    known = {word for word in grammar.literals().values() if word.isidentifier()}
    of_settings = {key for block in BLOCK_CLASSES for key in keywords(block)} & known
    roles = {name for family in FAMILIES.values() for entry in family.outline([0, 1]) for name, _ in entry.role.path}
    found = {
        "statements": TOP,
        "settings": of_settings - TOP,
        "keywords": known - of_settings - TOP,
        "formats": {*NUMBER_FORMATS, "int", "uint"},
        "roles": {role for role in roles if len(role) > 2},
        "short roles": {role for role in roles if len(role) <= 2},
    }
    return {kind: sorted(some) for kind, some in found.items()}


def textmate() -> dict[str, str]:
    """Kind of word -> the pattern of all of them."""
    found = {kind: rf"\b({'|'.join(some)})\b" for kind, some in words().items()}
    short = words()["short roles"]
    del found["short roles"]
    return found | {"roles": rf"{found['roles']}|(?<=[.{{,])({'|'.join(short)})\b(?!\s*[0-9(=])"}


def test_the_grammars_words_are_the_languages() -> None:
    text = TEXTMATE.read_text()
    names = {kind: one["name"] for kind, one in json.loads(text)["repository"].items()}
    for kind, pattern in textmate().items():
        line = f'    "{kind}": {{ "name": "{names[kind]}", "match": {json.dumps(pattern)} }}'
        text = re.sub(rf'^    "{kind}": .*?(?=,?$)', lambda _, line=line: line, text, flags=re.MULTILINE)
    check(TEXTMATE, text)


def test_vims_words_are_the_languages() -> None:
    text = VIM.read_text()
    for kind, some in words().items():
        if kind == "short roles":
            line = 'syn match qspecRole "[.{,]\\@1<=\\(' + "\\|".join(some) + '\\)\\>"'
            text = re.sub(r"^syn match qspecRole .*$", lambda _, line=line: line, text, flags=re.MULTILINE)
        else:
            group = f"qspec{kind[:-1].capitalize()}"
            line = f"syn keyword {group} {' '.join(some)}"
            text = re.sub(rf"^syn keyword {group}\b.*$", lambda _, line=line: line, text, flags=re.MULTILINE)
    check(VIM, text)


def check(path: Path, wanted: str) -> None:
    """The file is as it should be, or is made so."""
    if os.environ.get("QSPEC_UPDATE_GOLDENS") == "1":
        path.write_text(wanted)
    assert path.read_text() == wanted


def patterns(found: dict[str, Any]) -> list[tuple[re.Pattern[str], dict[int, str]]]:
    """The grammar's patterns with the scopes of their groups, in order."""
    rules = [found["repository"][p["include"][1:]] if "include" in p else p for p in found["patterns"]]
    return [
        (
            re.compile(rule["match"]),
            {int(group): c["name"] for group, c in rule.get("captures", {}).items()}
            | ({0: rule["name"]} if "name" in rule else {}),
        )
        for rule in rules
    ]


def scopes(text: str, rules: list[tuple[re.Pattern[str], dict[int, str]]]) -> list[str]:
    """The scope of every character: line by line, the pattern that matches first, of several the first listed."""
    found: list[str] = []
    for line in text.split("\n"):
        marks, at = [""] * (len(line) + 1), 0
        while matches := [m for pattern, _ in rules if (m := pattern.search(line, at)) and m.end() > m.start()]:
            best = min(matches, key=lambda m: m.start())
            for group, name in sorted(next(names for pattern, names in rules if pattern is best.re).items()):
                marks[best.start(group) : best.end(group)] = [name] * (best.end(group) - best.start(group))
            at = best.end()
        found += marks
    return found


def leaves(node: Block | Tree) -> list[Leaf]:
    """All words of a statement, those of a block's head too."""
    if isinstance(node, Tree):
        return node.leaves()
    start = node.head.start
    key = Leaf(node.kind.upper(), node.kind, node.head._replace(end=start + len(node.kind)))
    return [key, *([node.name] if node.name else []), *(leaf for item in node.items for leaf in leaves(item.node))]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_get_the_scopes_of_their_parse(path: Path) -> None:
    text = path.read_text()
    file, problems = parse(Source(str(path), text))
    assert not problems
    marks = scopes(text, patterns(json.loads(TEXTMATE.read_text())))
    for comment in re.finditer("#.*", re.sub('"[^"\n]*"', lambda m: "x" * len(m[0]), text)):
        assert set(marks[comment.start() : comment.end()]) == {"comment.line.number-sign.qspec"}
    for item in file.items:
        for leaf in leaves(item.node):
            wanted = expected(leaf, text)
            if wanted:
                found = set(marks[leaf.span.start : leaf.span.end])
                assert len(found) == 1, (leaf, found)
                assert found.pop().startswith(wanted), leaf


def expected(leaf: Leaf, text: str) -> str | None:
    """How the scope of a word starts."""
    if re.match(r"\s*=", text[leaf.span.end :]) and leaf.text.isidentifier():
        return "variable."
    match leaf.kind:
        case "NUMBER" | "SIZE":
            return "constant.numeric."
        case "STRING":
            return "string."
        case "REFERENCE":
            return "variable."
        case "NAME":
            before = text[: leaf.span.start].split()[-1]
            type_, format_ = "entity.name.type.", "storage.type." if leaf.text in NUMBER_FORMATS else None
            kinds = {"apply": "entity.name.function.", "scheme": type_, "recipe": type_, "use": type_}
            return kinds.get(before, format_)
    return "keyword." if leaf.text.isidentifier() else None


def test_the_notes_name_what_there_is() -> None:
    package = json.loads((FOLDER / "vscode" / "package.json").read_text())
    assert package["contributes"]["configuration"]["properties"]["qspec.command"]["default"] == ["qspec", "lsp"]
    assert "lsp" in COMMANDS
    for name in (package["main"], *(g["path"] for g in package["contributes"]["grammars"])):
        assert (FOLDER / "vscode" / name).is_file()
    for language in package["contributes"]["languages"]:
        json.loads((FOLDER / "vscode" / language["configuration"]).read_text())
    notes = (FOLDER / "README.md").read_text()
    (helix,) = re.findall(r"```toml\n(.*?)```", notes, re.DOTALL)
    assert tomllib.loads(helix)["language-server"]["qspec"]["args"] == ["lsp"]
    assert f"qspec-{package['version']}.vsix" in notes
