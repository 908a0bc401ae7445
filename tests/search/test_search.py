"""The whole search on a checkpoint of two blocks: what it writes, that it repeats itself, and the ways to fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest

from qspec import cli, passes
from qspec.compiler import CompileOptions, find_inputs, read_recipe
from qspec.compiler import compile as compile_recipe
from qspec.language import load_recipe
from qspec.language.budgets import parse_budgets
from qspec.language.formatter import format_source
from qspec.models.registry import FAMILIES
from qspec.search.engine import Engine
from qspec.search.limits import find_limits
from qspec.search.run import Outcome, SearchOptions, search, trial
from tests.search.conftest import Mini, search_recipe


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that everything is written below."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def outcome(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One worker."""
    folder = tmp_path_factory.mktemp("one")
    before = Path.cwd()
    os.chdir(folder)
    try:
        found = search(searched, device="cpu")
    finally:
        os.chdir(before)
    return Outcome(**{**vars(found), "folder": folder / found.folder})


def written(folder: Path) -> dict[str, bytes]:
    """Recipes and evidence."""
    return {p.name: p.read_bytes() for p in folder.glob("build/search/*/*_found.*")}


def found_recipe(outcome: Outcome) -> Path:
    return outcome.folder / "mini_search_found.qs"


def test_the_recipe_is_canonical_and_means_what_was_found(outcome: Outcome, tmp_path: Path) -> None:
    path = found_recipe(outcome)
    text = path.read_text()
    assert format_source(text) == text
    assert "search {" not in text
    spec = load_recipe(path, passes.available(), {}, FAMILIES).spec
    artifact = compile_recipe(path, out=tmp_path / "out", device="cpu", options=CompileOptions(evaluate=False))
    (found,) = outcome.found
    assert artifact.manifest.bits_per_weight == found.bits <= 4
    assert {m.role: m.scheme for m in artifact.manifest.modules if m.role.startswith("blocks")} == dict(
        trial(outcome.space, found.layout).schemes
    )
    used = {m.scheme for m in artifact.manifest.modules} - {None}
    assert set(spec.schemes) == used


def test_the_evidence(outcome: Outcome) -> None:
    evidence = json.loads(found_recipe(outcome).with_suffix(".json").read_text())
    trials = evidence["trials"]
    assert [t["origin"] for t in trials[:3]] == ["solver", "uniform", "first and last"]
    assert evidence["measured"] in [t["measured"] for t in trials]
    assert evidence["measured"] <= trials[0]["measured"]
    assert len(trials) in (11, 12)  # as many as it may, or one batch without anything better
    assert len(evidence["sensitivities"]) == 2 * 4 * 3  # blocks, inputs, schemes that round
    assert [p["bits"] for p in evidence["curve"]] == sorted(p["bits"] for p in evidence["curve"])
    losses = [p["predicted"] for p in evidence["curve"]]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_workers_finds_the_same(workers: int, outcome: Outcome, searched: Path, here: Path) -> None:
    search(searched, device="cpu", options=SearchOptions(workers=workers))
    assert written(here) == written(outcome.folder.parents[2])


@pytest.mark.slow
def test_rays_workers_find_the_same(outcome: Outcome, searched: Path, here: Path) -> None:
    pytest.importorskip("ray", reason="Ray is an extra")
    search(searched, device="cpu", options=SearchOptions(workers=2, ray="local"))
    assert written(here) == written(outcome.folder.parents[2])


@pytest.mark.slow
def test_killed_and_resumed(outcome: Outcome, searched: Path, here: Path) -> None:
    """Killed with its workers at any moment, the same command goes on and ends in the same bytes."""
    command = [sys.executable, "-m", "qspec", "search", str(searched), "--device", "cpu", "--quiet", "--workers", "2"]
    process = subprocess.Popen(command, cwd=here, start_new_session=True)
    results = here / "build/search/mini_search/results"
    while len(list(results.glob("*.json"))) < 4:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {p.name: p.stat().st_mtime_ns for p in results.glob("*.json")}
    assert not written(here)
    search(searched, device="cpu", options=SearchOptions(resume=True))
    assert written(here) == written(outcome.folder.parents[2])
    assert {name: (results / name).stat().st_mtime_ns for name in kept} == kept


@pytest.mark.slow
def test_a_lost_worker_loses_nothing(outcome: Outcome, searched: Path, here: Path) -> None:
    command = [sys.executable, "-m", "qspec", "search", str(searched), "--device", "cpu", "--quiet", "--workers", "2"]
    process = subprocess.Popen(command, cwd=here)
    results = here / "build/search/mini_search/results"
    while len(list(results.glob("*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [int(c) for c in children if "spawn_main" in Path(f"/proc/{c}/cmdline").read_text()]
    os.kill(workers[0], signal.SIGKILL)
    assert process.wait() == 0
    assert written(here) == written(outcome.folder.parents[2])


def test_a_sweep_uses_one_set_of_probes(outcome: Outcome, searched: Path, here: Path) -> None:
    results = here / "build/search/mini_search/results"
    results.parent.mkdir(parents=True)
    results.symlink_to(outcome.folder / "results")
    before = len(list(results.glob("*.json")))
    swept = search(searched, device="cpu", options=SearchOptions(sweep=["3 bits", "6 bits, 0.3 MiB"]))
    assert len(list(results.glob("*.json"))) <= before + 2 * 12
    assert [found.bits <= most for found, most in zip(swept.found, (4, 3, 6), strict=True)] == [True] * 3
    assert sorted(p.name for p in here.glob("build/search/mini_search/sweep/*.qs")) == [
        "mini_search_3_bits.qs",
        "mini_search_6_bits_0p3_MiB.qs",
    ]


def test_close_to_the_exhaustive_optimum(mini: Mini, here: Path) -> None:
    """Four linears' inputs, three choices each: all 81 layouts are measured, and the search comes within 2 %."""
    more = "offer w2, w4, w8a8 on blocks[*].*\n  offer w4 on blocks[0].*"
    recipe = search_recipe(mini, here, more)
    outcome = search(recipe, device="cpu", options=SearchOptions(budget="4.4 bits"))
    engine = Engine(find_inputs(read_recipe(recipe), device="cpu", options=CompileOptions(evaluate=False)))
    (limit,) = find_limits(outcome.space, parse_budgets("4.4 bits"))
    layouts = list(product(*(range(len(unit.options)) for unit in outcome.space.units)))
    assert len(layouts) == 3**4
    true = [engine.run(trial(outcome.space, layout))["mean"] for layout in layouts if limit.holds(layout)]
    assert len(true) > 20
    assert outcome.found[0].loss is not None
    assert outcome.found[0].loss <= 1.02 * min(true)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["search", *arguments])
    return code, *capsys.readouterr()


def test_the_command(outcome: Outcome, searched: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = here / "build/search/mini_search/results"
    results.parent.mkdir(parents=True)
    results.symlink_to(outcome.folder / "results")
    out = here / "elsewhere" / "4-bit mine.qs"
    code, text, _ = run(capsys, str(searched), "--device", "cpu", "--out", str(out), "--resume")
    assert code == 0
    assert str(out) in text
    assert "recipe _4_bit_mine {" in out.read_text()
    assert f"{outcome.found[0].bits:.4f}" in text
    assert f"{outcome.found[0].model_bits:.4f}" in text
    page = (results.parent / "search.html").read_text()
    assert page.count("<svg") == 1 + 3  # loss against bits; a map for each scheme that rounds
    assert all(f"4 bits: {name}, " in page for name in ("uniform", "first and last", "found"))
    assert all(f"blocks[{block}].mlp.down in w2: " in page for block in (0, 1))
    assert "| 4 bits | " in (results.parent / "search.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--budget", "1 bits"], 3, "the smallest feasible one is 2.5000 bits"),
        (["--budget", "4 bit"], 1, "there is no unit `bit`"),
        (["--budget", "4 bits } x {"], 1, "error"),
        (["--resume"], 3, "there is no earlier search to resume"),
        (["--budget", "4 bits, 1 us for block_decode"], 3, "the smallest feasible one is"),
        (["--workers", "0"], 2, "--workers is 0"),
        (["--out", "x.txt"], 2, "--out names x.txt"),
        (["--ray", "local"], 3, "pip install 'qspec[ray]'"),
    ],
)
def test_what_cannot_be_done(
    arguments: Sequence[str],
    code: int,
    message: str,
    searched: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    found, _, errors = run(capsys, str(searched), "--device", "cpu", "--quiet", *arguments)
    assert found == code
    assert message in errors
    assert "Traceback" not in errors


def test_results_of_another_search_are_nothing_to_resume(
    outcome: Outcome, mini: Mini, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same recipe with another seed measures other rows."""
    results = here / "build/search/mini_search/results"
    results.parent.mkdir(parents=True)
    results.symlink_to(outcome.folder / "results")
    code, _, errors = run(capsys, str(search_recipe(mini, here, "seed 7")), "--device", "cpu", "--resume")
    assert (code, "there is no earlier search to resume" in errors) == (3, True)


def test_recipes_that_cannot_be_searched(mini: Mini, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = run(capsys, str(mini.recipe), "--budget", "4 bits")
    assert (code, "no `search` block" in errors) == (3, True)
    recipe = search_recipe(mini, here, "offer w2 on blocks[1].attention.k\n  offer w4 on blocks[1].attention.q")
    code, _, errors = run(capsys, str(recipe))
    assert (code, "QS037" in errors) == (1, True)
    recipe = search_recipe(mini, here)
    recipe.write_text(recipe.read_text().replace("apply gptq", "apply quarot() on blocks[*].*\napply gptq"))
    code, _, errors = run(capsys, str(recipe))
    assert (code, "rewrites the whole model" in errors) == (3, True)
