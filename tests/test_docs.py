"""Every command in the documents runs, and prints what they show."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qspec.bench.generation_data import read as read_generation
from qspec.effort import this_gpu
from tests.models.layout import LLADA_8B

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")


def transcripts() -> list[tuple[str, str]]:
    """(command, what it prints) of every console block of the README."""
    blocks = re.findall(r"```console\n\$ (.*?)\n(.*?)```", README, flags=re.DOTALL)
    return [(command, output) for command, output in blocks]


def run(command: str, folder: Path) -> str:
    words = shlex.split(command)
    assert words[0] == "qspec"
    done = subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the README's commands run: the recipes, LLaDA-8B's config.json, and the recipe with mistakes."""
    import json
    import shutil

    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "LLaDA-8B-Instruct").mkdir()
    (tmp_path / "LLaDA-8B-Instruct" / "config.json").write_text(json.dumps(LLADA_8B))
    (tmp_path / "mistakes.qs").write_text((ROOT / "tests" / "errors" / "readme.qs").read_text())
    return tmp_path


@pytest.mark.parametrize(("command", "shown"), [t for t in transcripts() if not re.match("qspec (compile|diff)", t[0])])
def test_transcripts(command: str, shown: str, folder: Path) -> None:
    assert anywhere(run(command, folder).strip()) == anywhere(shown.strip())


def anywhere(plan: str) -> str:
    """A plan without what it says of this machine's GPU, if there is one; the README has that of a machine without."""
    return re.sub(r"  evaluate needs .*\n.*\n", "", plan) if this_gpu() else plan


def test_the_table_of_times_is_what_was_measured() -> None:
    steps = json.loads((ROOT / "docs" / "performance" / "step.json").read_text())["steps"]
    measured = {(s["recipe"], s["tokens"]): s for s in steps if s["model"] == "llada" and s["compiled"]}
    shown_steps = README.partition("Generating text as")[0]
    rows = re.findall(r"^\| `paper/(\w+)`[^|]*((?:\| [0-9.]+ ){6})\|$", shown_steps, flags=re.MULTILINE)
    assert {recipe for recipe, _ in rows} == {recipe for recipe, _ in measured}
    for recipe, shown in rows:
        found: list[str] = []
        for tokens in (1024, 32):
            ours, base = (measured[recipe, tokens][who]["milliseconds"] for who in ("ours", "base"))
            found += [f"{ours:.1f}", f"{base:.1f}", f"{base / ours:.2f}"]
        assert shown.replace("|", " ").split() == found


def test_the_table_of_generated_texts_is_what_was_measured() -> None:
    run = read_generation([ROOT / "docs" / "performance" / "generate.json"])
    cells = {
        (c.recipe, c.cache): c for c in run.cells if (c.model, c.prompt, c.execution) == ("llada", 960, "captured")
    }
    rows = re.findall(
        r"^\| `paper/(\w+)`[^|]*((?:\| [0-9.]+ ){6})\|$", README.partition("Generating text as")[2], re.MULTILINE
    )
    assert {recipe for recipe, _ in rows} == {recipe for recipe, _ in cells} - {"bf16"}
    assert "on one {gpu} with torch {torch} and Triton {triton} (".format(**run.environment) in README
    for recipe, shown in rows:
        found: list[str] = []
        for cache in ("none", "dual"):
            cell = cells[recipe, cache]
            numbers = (cell.step_milliseconds, run.over(cell, "eager"), run.over(cell, "captured"))
            found += [f"{number:.2f}" for number in numbers if number is not None]
        assert shown.replace("|", " ").split() == found


def test_steps_of_generated_texts_are_what_was_measured() -> None:
    """Of 64 steps with a dual cache two are passes over the whole canvas, at the beginnings of blocks of 32."""
    run = read_generation([ROOT / "docs" / "performance" / "generate.json"])
    times = {(c.prompt, c.recipe, c.execution, c.cache): c.step_milliseconds for c in run.cells if c.model == "llada"}

    def alone(recipe: str) -> float:
        mean, whole = (times[960, recipe, "captured", cache] for cache in ("dual", "none"))
        return (64 * mean - 2 * whole) / 62

    found = [alone("bf16") / alone(name) for name in ("rtn_w4a4", "duquant_w4a4", "gptq_w4a16", "rtn_w8a8")]
    shown = "W4A4 {:.2f}, with two rotations {:.2f}, W4A16 {:.2f}, W8A8 {:.2f} times as fast as bf16"
    assert shown.format(*found) in README
    short = [times[320, *key, "none"] for key in (("rtn_w4a4", "captured"), ("bf16", "captured"), ("bf16", "eager"))]
    shown = "takes {:.2f} ms, where captured bf16 takes {:.2f}, eager bf16 {:.2f}, and the loop of LLaDA's publication "
    assert f"{shown.format(*short)}{times[320, 'bf16', 'published', 'none']:.2f} (" in README


@pytest.mark.parametrize(("gpu", "file"), [(0, "step.json"), (1, "step_h200.json")])
def test_the_ratios_of_steps_are_what_was_measured(gpu: int, file: str) -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    steps = json.loads((ROOT / "docs" / "performance" / file).read_text())["steps"]
    ratios = {(s["recipe"], s["tokens"]): f"{s['ratio']:.2f}" for s in steps if s["model"] == "llada" and s["compiled"]}
    for tokens, first in ((1024, "rtn_w8a8"), (32, "gptq_w4a16")):
        (row,) = re.findall(rf"^\| {tokens} tokens[^|]*\|[^|]*\|(.*)\|$", page, flags=re.MULTILINE)
        wanted = [ratios[recipe, tokens] for recipe in (first, "rtn_w4a4", "duquant_w4a4")]
        assert re.findall(r"\d\.\d\d", row.split("|")[gpu]) == wanted


def measured_gemms(file: str = "bench.json") -> dict[tuple[str, int], list[dict[str, Any]]]:
    """The cells of docs/performance/FILE by format and tokens, in the order of their shapes."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in json.loads((ROOT / "docs" / "performance" / file).read_text())["cells"]:
        found.setdefault((cell["format"], cell["tokens"]), []).append(cell)
    return found


def test_the_ratios_of_gemms_are_what_was_measured() -> None:
    cells = [c for (fmt, tokens), found in measured_gemms().items() for c in found if fmt == "w4a4" and tokens >= 16]
    ratios = [cell["others"]["cuBLAS bf16"] / cell["microseconds"] for cell in cells]
    whole = [cell["others"]["cuBLAS bf16"] / cell["whole"] for cell in cells]
    assert f"W4A4 GEMMs are {min(ratios):.2f} to {max(ratios):.2f} times as fast as bf16" in README
    assert f"{min(whole):.2f} to {max(whole):.2f} times with activation quantization included" in README


def test_the_text_is_generated(folder: Path) -> None:
    """The README's command, of the unquantized stand-in in place of the artifact."""
    (command,) = re.findall(r"^qspec generate .*$", README, flags=re.MULTILINE)
    assert "qspec generate build/llada_w4a4 " in command
    assert "#### 7" in run(command.replace("build/llada_w4a4", "tiny-llada"), folder)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_search_writes_a_recipe_within_its_budget(folder: Path) -> None:
    (command,) = re.findall(r"^qspec search .*$", README, flags=re.MULTILINE)
    printed = run(f"{command} --workers 2", folder)
    (shown,) = re.findall(r"^  4\.25 bits +([0-9.]+) ", printed, flags=re.MULTILINE)
    found = "build/search/llada_search/llada_search_found.qs"
    assert run(f"qspec check {found}", folder) == "no errors in 1 recipe\n"
    plan = run(f"qspec plan {found} --model tiny-llada", folder)
    (planned,) = re.findall(r"^ +bits per weight +([0-9.]+) ", plan, flags=re.MULTILINE)
    assert float(planned) == pytest.approx(float(shown), abs=6e-4)
    assert float(shown) <= 4.25


def scripts() -> dict[str, set[str]]:
    """Script -> the options that the README gives it, of every command that runs an example."""
    found: dict[str, set[str]] = {}
    for line in re.findall(r"^python (examples/.*)$", README, flags=re.MULTILINE):
        script, *words = shlex.split(line)
        found.setdefault(script, set()).update(word for word in words if word.startswith("--"))
    return found


@pytest.mark.parametrize(("script", "options"), scripts().items())
def test_the_examples_take_the_options_that_are_shown(script: str, options: set[str]) -> None:
    command = [sys.executable, str(ROOT / script), "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert options <= set(re.findall(r"--[\w-]+", shown))


def test_there_are_transcripts() -> None:
    expected = ["compile", "check", "new", "plan", "why", "diff", "inspect"]
    assert [shlex.split(c)[1] for c, _ in transcripts()] == expected
    assert set(scripts()) == {"examples/paper_tables/run.py"}


def test_the_two_commands_come_first() -> None:
    blocks = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)
    assert [kind for kind, _ in blocks[:2]] == ["sh", "sh"]
    assert blocks[0][1].strip().endswith("qspec compile recipes/llada_w4a4.qs")
    assert blocks[1][1].strip().endswith("-m pytest")
    assert all("\n" not in text.strip() for _, text in blocks[:2])


def test_the_recipe_shown_is_the_recipe() -> None:
    assert (ROOT / "recipes" / "llada_w4a4.qs").read_text().strip() in README


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_are_named_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    links = re.findall(r"\]\(([\w./-]+)\)", text)
    paths = re.findall(r"`((?:qspec|grammar|codegen|recipes|tests|examples)/[\w./-]+)`", text)
    missing = [p for p in (*links, *paths) if not (ROOT / p.rstrip("/")).exists()]
    assert not missing


def headings(page: Path) -> set[str]:
    """What links to a page's headings end in: lower case, words joined by hyphens."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


PAGES = [page for glob in ("", "docs/", "docs/lab/", "grammar/", "examples/*/") for page in ROOT.glob(f"{glob}*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        other = page.parent / target if target else page
        assert other.exists(), target
        assert not heading or heading in headings(other), f"{target}#{heading}"


def test_architecture_is_short() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text().splitlines()) < 150


def test_the_walk_names_each_file_once() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    walk = text[text.index("## A walk") : text.index("## Glossary")]
    files = re.findall(r"`([\w.]+/[\w./]*)`", walk.split("each file at its first use")[1])
    assert len(files) == len(set(files)) > 40
    assert all((ROOT / name).exists() for name in files)


def test_the_design_of_kernels_is_short() -> None:
    assert len((ROOT / "docs" / "kernels.md").read_text().split()) <= 1500


def test_python_example_parses_and_names_the_api() -> None:
    import qspec

    code = re.search(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert code is not None
    compile(code[1], "README.md", "exec")
    used = set(re.findall(r"qspec\.(\w+)\(", code[1]))
    assert used <= set(qspec.__all__)


def test_the_first_screen_says_what_was_never_run() -> None:
    first = README[: README.index("```sh")]
    assert "no real checkpoint of LLaDA-8B or Dream-7B was ever compiled" in first
    assert "outliers we injected at sizes that we chose" in first
    assert "random weights" in first


def test_the_peers_that_are_named_are_those_that_were_measured() -> None:
    (named,) = re.findall(r"with its peers \((.*?)\), W4A4", README)
    measured = {name for cells in measured_gemms().values() for cell in cells for name in cell["others"]}
    assert {name.split()[0] for name in measured} == {"cuBLAS", "humming", "gemlite"}
    assert all(word in named for name in measured for word in name.split() if word != "rows")
