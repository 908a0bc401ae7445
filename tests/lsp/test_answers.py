"""The server's answers in-process: diagnostics are those of `qspec check`, fixes fix, names reach other files, and
typing is fast."""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lsprotocol import types as lsp

from qspec.cli import main
from qspec.diagnostics import Diagnostic, Edit, Source, Span, apply_edits, errors
from qspec.errors import UsageError
from qspec.lsp.hover import hover
from qspec.lsp.recipes import Recipes, _changes
from qspec.lsp.rename import renamed
from qspec.lsp.server import Server, make_server
from qspec.lsp.text import Document, Place
from tests.language.fakes import ROOT

ERRORS = ROOT / "tests" / "errors"


def is_text(path: Path) -> bool:
    """Whether an editor can hold it."""
    try:
        return path.read_bytes().decode() != ""
    except UnicodeDecodeError:
        return False


GOLDENS = [path for path in sorted(ERRORS.glob("*.qs")) if is_text(path)]


@cache
def opened(path: Path) -> Server:
    server = make_server()
    server.recipes.open(str(path), path.read_bytes().decode())
    return server


def utf16(text: str, line: int, column: int) -> int:
    """The column in UTF-16 units of a place that `check` counts in characters from 1."""
    return len(text.split("\n")[line - 1][: column - 1].encode("utf-16-le")) // 2


def shown(server: Server, problem: Diagnostic) -> dict[str, Any]:
    """What the editor is told, as `check --format json` would say it."""
    told = server._diagnostic(problem)
    message, _, hint = told.message.rpartition("\nnext: ")
    related = [(Path(r.location.uri).name, r.location.range, r.message) for r in told.related_information or ()]
    severity = "error" if told.severity == lsp.DiagnosticSeverity.Error else "warning"
    return {
        "code": told.code,
        "severity": severity,
        "message": message,
        "hint": hint,
        "at": told.range,
        "notes": related,
    }


def checked(problem: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What `check --format json` says, with places as the editor has them."""

    def place(one: dict[str, Any]) -> lsp.Range:
        text = (folder / one["path"]).read_text()
        ends = ((one[end]["line"], one[end]["column"]) for end in ("start", "end"))
        return lsp.Range(*(lsp.Position(line - 1, utf16(text, line, column)) for line, column in ends))

    notes = [(Path(note["path"]).name, place(note), note["text"]) for note in problem["notes"]]
    said = {key: problem[key] for key in ("code", "severity", "message", "hint")}
    return {**said, "at": place(problem), "notes": notes}


def test_diagnostics_are_those_of_check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ERRORS)
    main(["check", "--format", "json", *(path.name for path in GOLDENS)])
    wanted = [checked(one, ERRORS) for one in json.loads(capsys.readouterr().out)]
    found: dict[Diagnostic, dict[str, Any]] = {}  # each once, as `check` has those of shared bases
    for path in GOLDENS:
        server = opened(path)
        found |= {problem: shown(server, problem) for problem in server.recipes.problems(str(path))}
    assert len(found) > 150
    assert [*found.values()] == wanted


def applied(recipes: Recipes, edit: lsp.WorkspaceEdit) -> str:
    """The one file of an edit, changed as an editor does it: by lines, in UTF-16 units."""
    ((uri, edits),) = (edit.changes or {}).items()
    path = uri.removeprefix("file://")
    lines = recipes.document(path).raw.replace("\r\n", "\n").split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len((line + "\n").encode("utf-16-le")))
    data = "\n".join(lines).encode("utf-16-le")
    for one in sorted(edits, key=lambda one: (one.range.start.line, one.range.start.character), reverse=True):
        first, last = (starts[p.line] + 2 * p.character for p in (one.range.start, one.range.end))
        data = data[:first] + one.new_text.encode("utf-16-le") + data[last:]
    return data.decode("utf-16-le")


def test_every_fix_that_is_offered_fixes() -> None:
    """It takes its diagnostic away, and brings no error of syntax; where it was the only one, the recipe is right."""
    fixed = right = 0
    for path in GOLDENS:
        server = opened(path)
        before = server.recipes.problems(str(path))
        for problem in before:
            if problem.edits:
                action = server.action(problem)
                assert action.edit is not None
                assert action.title
                other = Recipes()
                other.open(str(path), applied(server.recipes, action.edit))
                after = {(d.code, d.message) for d in other.problems(str(path))}
                assert (problem.code, problem.message) not in after
                assert not any(code < "QS010" for code, _ in after - {(d.code, d.message) for d in before})
                fixed += 1
                if len(before) == 1:
                    assert not after, path.name
                    right += 1
    assert fixed > 40
    assert right > 20


BASE = """qspec 1

param alpha = 0.5 in 0..1

scheme w8 {
  weights     int8 per channel
  activations int8 per token
}
"""
LEAF = """qspec 1

extends "{base}"

recipe r {{
  family llada
  model  "tiny-llada"
}}

scheme w4 {{
  weights int4 per group 128
}}

layers blocks[*].*      use w8
layers blocks[0].mlp.up use w4

apply smooth(alpha = $alpha) on blocks[*].*
apply rtn()                  on blocks[*].*
"""


@pytest.fixture
def family(tmp_path: Path) -> tuple[Recipes, Path]:
    """A base, two recipes that extend it, one that extends one of these, and a stranger with the same names."""
    recipes = Recipes(folders=[tmp_path / "w"], model="tiny-llada")
    texts = {
        "base": BASE,
        "a": LEAF.format(base="base.qs"),
        "b": LEAF.format(base="sub/../base.qs"),
        "c": LEAF.format(base="a.qs"),
        "stranger": LEAF.format(base="other.qs").replace("$alpha", "0.25"),
        "other": BASE.replace("param alpha = 0.5 in 0..1\n\n", ""),
    }
    (tmp_path / "w" / "sub").mkdir(parents=True)
    for name, text in texts.items():
        (tmp_path / "w" / f"{name}.qs").write_text(text)
    return recipes, tmp_path / "w"


def rename(recipes: Recipes, path: Path, word: str, name: str) -> dict[str, str]:
    """The files that change, as they become."""
    edits: dict[str, list[Edit]] = {}
    for edit in renamed(recipes, str(path), recipes.document(str(path)).source.text.index(word), name):
        edits.setdefault(edit.span.path, []).append(edit)
    return {Path(p).stem: apply_edits(recipes.document(p).source.text, e) for p, e in edits.items()}


@pytest.mark.parametrize("start", ["base", "a", "b", "c"])
def test_a_name_of_the_base_is_renamed_everywhere(family: tuple[Recipes, Path], start: str) -> None:
    recipes, folder = family
    path = folder / f"{start}.qs"
    recipes.open(str(path), path.read_text())
    changed, alpha = rename(recipes, path, "w8", "eight"), "alpha" if start == "base" else "$alpha"
    assert sorted(changed) == ["a", "b", "base", "c"]
    assert changed["base"] == BASE.replace("scheme w8 ", "scheme eight ")
    assert changed["b"] == LEAF.format(base="sub/../base.qs").replace("use w8", "use eight")
    changed |= {name: text for name, text in rename(recipes, path, alpha, "much").items() if name == "base"}
    assert changed["base"] == BASE.replace("param alpha", "param much")
    for name, text in rename(recipes, path, "w8", "eight").items():
        recipes.open(str(folder / f"{name}.qs"), text)
    assert [d for name in ("a", "b", "c") for d in errors(recipes.problems(str(folder / f"{name}.qs")))] == []


def test_what_cannot_be_renamed(family: tuple[Recipes, Path]) -> None:
    recipes, folder = family
    a = folder / "a.qs"
    for word, name, why in (
        ("recipe", "x", "only schemes and params"),
        ("w8", "w4", "there is a scheme `w4` already"),
        ("w8", "keep", "cannot name a scheme"),
        ("w8", "4w", "cannot name a scheme"),
    ):
        with pytest.raises(UsageError, match=why):
            rename(recipes, a, word, name)
    recipes.open(str(a), a.read_text().replace("use w8", "use w9"))
    with pytest.raises(UsageError, match="`w9` is declared nowhere"):
        rename(recipes, a, "w9", "x")
    outside = folder.parent / "outside.qs"
    outside.write_text(BASE)
    recipes.open(str(a), LEAF.format(base="../outside.qs"))
    with pytest.raises(UsageError, match="outside of the workspace"):
        rename(recipes, a, "w8", "x")


def test_a_change_of_an_open_base_shows_in_what_extends_it(family: tuple[Recipes, Path]) -> None:
    recipes, folder = family
    a, base = str(folder / "a.qs"), str(folder / "base.qs")
    assert recipes.problems(a) == ()
    recipes.open(base, BASE.replace("scheme w8", "scheme w9"))
    assert [d.code for d in recipes.problems(a)] == ["QS021"]
    recipes.close(base)
    assert recipes.problems(a) == ()


def test_what_hovers_say(family: tuple[Recipes, Path]) -> None:
    recipes, folder = family
    path = folder / "a.qs"
    text = path.read_text()

    def said(word: str) -> str:
        found = hover(recipes, str(path), text.index(word) + 1)
        return found[0] if found else ""

    assert "| `blocks[0].mlp.up` | w4 | 4.125 |" in said("blocks[0]")
    assert said("blocks[*]").startswith("42 modules of llada with 6 blocks of width 256\n")
    assert "| `blocks[1..5].mlp.up` | w8 |" in said("w8\n")
    assert said("$alpha") == "```qs\nparam alpha = 0.5 in 0..1\n```"
    assert "- `alpha`: how much of the difficulty moves" in said("smooth")
    assert "0 … 1, search; default 0.5" in said("alpha =")
    assert said("int4") == "**int4**: 4-bit integer, codes -8 … 7"
    assert said("family").startswith("**family**: the model's family")
    assert said("layers").startswith("**layers**: which layers get which scheme")
    assert said("tiny-llada") == ""
    recipes.open(str(path), text.replace("use w4", "use w5"))
    assert said("blocks[0]").endswith("as of the last version without errors")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_pieces_of_text_make_the_whole(encoding: str, end: str) -> None:
    """Random changes, told in the editor's units, against the same made on a list of lines."""
    random_ = random.Random(f"{encoding}{end}")
    sizes = {"utf-8": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}
    width = {"utf-8": 1, "utf-16": 2, "utf-32": 4}[encoding]
    document, lines = Document("r.qs", "", encoding), [""]
    for _ in range(300):
        (a, i), (b, j) = sorted(_somewhere(lines, random_) for _ in range(2))
        text = "".join(random_.choices(["a", "é", "𝔸", "\u2028", "\x0b", "\n", "{", " "], k=random_.randrange(6)))
        columns = [len(lines[n][:k].encode(sizes[encoding])) // width for n, k in ((a, i), (b, j))]
        document = document.changed(Place(a, columns[0]), Place(b, columns[1]), text.replace("\n", end))
        lines[a : b + 1] = (lines[a][:i] + text + lines[b][j:]).split("\n")
        assert document.raw == end.join(lines)
        assert document.source.text == "\n".join(lines)
        offset = random_.randrange(len(document.source.text) + 1)
        assert document.offset(document.place(offset)) == offset
    assert document.offset(Place(0, 10**6)) == len(lines[0])
    assert document.offset(Place(10**6, 0)) == len(document.source.text)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (None, "utf-16"),
        ([], "utf-16"),
        (["utf-8", "utf-16"], "utf-8"),
        (["utf-32"], "utf-32"),
        (["x", "utf-32"], "utf-32"),
    ],
)
def test_the_units_are_those_that_both_know(offered: list[str] | None, chosen: str) -> None:
    server = make_server()
    general = lsp.GeneralClientCapabilities(position_encodings=offered)
    params = lsp.InitializeParams(lsp.ClientCapabilities(general=general))
    steps = server.protocol.lsp_initialize(params)
    handler, arguments, _ = next(steps)
    handler(*arguments)
    with pytest.raises(StopIteration) as answer:
        next(steps)
    assert answer.value.value.capabilities.position_encoding == chosen
    assert server.recipes.encoding == chosen


def _somewhere(lines: list[str], random_: random.Random) -> tuple[int, int]:
    line = random_.randrange(len(lines))
    return line, random_.randrange(len(lines[line]) + 1)


def long_recipe() -> str:
    """The main recipe with a rule for each of many layers: 200 lines."""
    text = (ROOT / "recipes" / "llada_w4a4.qs").read_text()
    parts = ("gate", "up", "down")
    rules = [f"layers blocks[{i % 32}].mlp.{parts[i % 3]} use {('w4a4', 'w8a8')[i % 2]}\n" for i in range(155)]
    return text.replace("layers head", "".join(rules) + "layers head")


def type_into(recipes: Recipes, path: str, count: int) -> list[float]:
    """Seconds of CPU from a keystroke to completions and diagnostics, for so many in the middle of a recipe."""
    line = recipes.document(path).source.text.split("\n").index("layers head, embedding             keep")
    typed = "layers blocks[0..7, -1].{attention,mlp}.{o,down} use w8a8  # half of it\n"
    seconds, column = [], 0
    for i in range(count):
        char = typed[i % len(typed)]
        start = time.process_time()
        recipes.change(path, char, (Place(line, column), Place(line, column)))
        line, column = (line + 1, 0) if char == "\n" else (line, column + 1)
        document = recipes.document(path)
        recipes.complete(path, document.offset(Place(line, column)))
        recipes.problems(path)
        seconds.append(time.process_time() - start)
    assert recipes.document(path).source.text.count(typed) == count // len(typed)
    return seconds


@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_typing_is_fast(count: int) -> None:
    recipes = Recipes()
    recipes.open("r.qs", long_recipe())
    assert recipes.document("r.qs").source.text.count("\n") >= 200
    assert statistics.median(type_into(recipes, "r.qs", count)) < 0.05


def test_every_prefix_of_a_recipe_is_answered() -> None:
    """Half-typed text gives no exception, whatever is asked."""
    text = long_recipe().replace("# W4A4", "# 𝔸")
    recipes = Recipes(model="tiny-llada")
    for end in range(0, 1400, 29):
        recipes.open("r.qs", text[:end])
        recipes.problems("r.qs")
        for offset in {end, end // 2}:
            recipes.complete("r.qs", offset)
            hover(recipes, "r.qs", offset)
            recipes.definition("r.qs", offset)
        recipes.outline("r.qs")


def test_a_base_is_checked_through_those_that_extend_it(family: tuple[Recipes, Path]) -> None:
    recipes, folder = family
    base = str(folder / "base.qs")
    recipes.open(base, BASE)
    assert recipes.problems(base) == ()
    assert "41 modules" in (hover(recipes, base, BASE.index("w8")) or ("",))[0]
    recipes.open(base, BASE.replace("per channel", "per chanel").replace("alpha", "much"))
    (problem,) = recipes.problems(base)
    assert (problem.code, problem.span.path) == ("QS005", base)
    alone = folder / "sub" / "alone.qs"
    recipes.open(str(alone), BASE)
    assert {d.code for d in recipes.problems(str(alone))} >= {"QS012"}


def test_a_model_of_another_family_gives_way_to_the_recipes_own(family: tuple[Recipes, Path]) -> None:
    recipes, folder = family
    path = folder / "a.qs"
    recipes.model = "tiny-dream"
    found = hover(recipes, str(path), path.read_text().index("blocks[*]"))
    assert found is not None
    assert found[0].startswith("42 modules of llada with 6 blocks")


def test_bases_are_completed(family: tuple[Recipes, Path]) -> None:
    recipes, folder = family
    (folder / "sub" / "deep.qs").write_text(BASE)
    text = 'qspec 1\n\nextends "'
    recipes.open(str(folder / "new.qs"), text)
    _, found = recipes.complete(str(folder / "new.qs"), len(text))
    names = ["a.qs", "b.qs", "base.qs", "c.qs", "other.qs", "stranger.qs", "sub/deep.qs"]
    assert [(one.word, one.kind) for one in found] == [(name, "file") for name in names]


def test_all_fixes_at_once(family: tuple[Recipes, Path]) -> None:
    recipes, folder = family
    path, text = str(folder / "a.qs"), LEAF.format(base="base.qs")
    wrong = text.replace("extends", "extend").replace("smooth", "smoth").replace("rtn", "rtm")
    recipes.open(path, wrong)
    assert apply_edits(wrong, recipes.fixed(path)) == text
    recipes.open(path, text)
    assert recipes.fixed(path) == []
    for before in ("a\ny", "a\nx\n", "", "b\na\nx", "x\n\n\n"):
        for after in ("a\nx\n", "", "a\n", "x\n", "y\na\nx\n"):
            assert apply_edits(before, _changes(Source("r.qs", before), after)) == after


def test_edits_of_the_layout_are_small() -> None:
    recipes = Recipes()
    text = LEAF.format(base="base.qs")
    recipes.open("r.qs", text.replace("  family llada", " family    llada"))
    (edit,) = recipes.formatted("r.qs")
    start = text.index("  family")
    assert edit == Edit(Span(start, start + len(" family    llada\n"), "r.qs"), "  family llada\n")
    recipes.open("r.qs", text)
    assert recipes.formatted("r.qs") == []


def test_without_its_extra_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pygls", None)
    for name in [name for name in sys.modules if name.startswith(("pygls.", "qspec.lsp.server"))]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["lsp"]) == 3
    assert "pip install 'qspec[lsp]'" in capsys.readouterr().err
