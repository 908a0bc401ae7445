"""What follows from measured times, and how it is shown. The measuring itself needs a GPU."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar, cast
from xml.etree import ElementTree

import pytest
import torch

from qspec.bench import FORMATS, Bench, Cell, measure, peers, write_bench
from qspec.bench.data import BASE, WITH_INPUT, read
from qspec.bench.render import markdown
from qspec.catalog import kernels_for
from qspec.cli import main
from qspec.cli.bench import FORMATS as NAMES
from qspec.errors import InputError, MachineError
from qspec.kernels import tuned
from tests.inspect.test_render import sample

CELL = Cell("w4a4", 1000, 2000, 16, 10.0, 12.5, 1_000_000, {BASE: 30.0, "a": 25.0, "b": 20.0})
BENCH = Bench(2000.0, 500.0, {"gpu": "A GPU", "torch": "2", "triton": "3"}, (CELL,), {"c": "OSError: no"})


def test_rates_are_bytes_and_operations_by_the_time() -> None:
    moved = 1_000_000 + 16 * (2000 + 2 * 1000)  # int8 codes in, bfloat16 out
    assert CELL.gigabytes_per_second == pytest.approx(moved / 10e-6 / 1e9)
    assert CELL.tera_per_second == pytest.approx(2 * 16 * 1000 * 2000 / 10e-6 / 1e12)
    assert CELL.over(BASE) == 3.0
    assert CELL.best_peer == "b"


def test_a_peer_that_quantizes_its_input_is_compared_with_both_kernels() -> None:
    """humming's 25 us have its input's quantization: ours with it are 12.5; cuBLAS fp8 gets codes: ours are 10."""
    cell = replace(CELL, others={BASE: 30.0, "cuBLAS fp8": 22.0, "humming W4A8": 25.0})
    assert cell.over("humming W4A8") == 25.0 / 12.5
    assert cell.over("cuBLAS fp8") == 22.0 / 10.0
    assert cell.best_peer == "humming W4A8"  # the least ratio, not the least time
    page = markdown(replace(BENCH, cells=(cell,)))
    assert "| over bf16 | over best peer | cuBLAS bf16 | cuBLAS fp8 | humming W4A8, with input |" in page
    assert "| 3.00 | 2.00 | 30.0 | 22.0 | 25.0 |" in page


def test_every_peer_that_quantizes_activations_by_itself_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages take bfloat16 in every call; torch's fp8 products take codes."""
    monkeypatch.setattr(peers, "find_spec", lambda _name: object())
    found = {fmt: [name for name in peers.peers_of(fmt) if name in WITH_INPUT] for fmt in FORMATS}
    assert found == {
        "w4a16_g128": [],
        "w3a16_g128": [],
        "w4a4": ["humming W4A8"],
        "w4a8": ["humming W4A8"],
        "w8a8": ["humming W8A8", "humming W4A8", "gemlite W8A8"],
        "w8a8_fp8": [],
    }


def test_the_limit_is_the_nearer_one() -> None:
    memory = CELL.gigabytes_per_second / 2000
    assert BENCH.limit(CELL) == pytest.approx(memory)
    many = Cell("w4a4", 1000, 2000, 4096, 20.0, 20.0, 1_000_000, {BASE: 30.0})
    assert BENCH.limit(many) == pytest.approx(many.tera_per_second / 1000)  # 8-bit operands: twice the rate
    floating = Cell("w4a16_g128", 1000, 2000, 4096, 40.0, 40.0, 1_000_000, {BASE: 30.0})
    assert BENCH.limit(floating) == pytest.approx(floating.tera_per_second / 500)


def test_every_format_has_kernels() -> None:
    assert tuple(FORMATS) == NAMES
    assert {name: kernels_for(scheme).gemm.name for name, scheme in FORMATS.items()} == {
        "w4a16_g128": "gemm_w4g128_sym_a16",
        "w3a16_g128": "gemm_w3g128_sym_a16",
        "w4a4": "gemm_w4_sym_a4",
        "w4a8": "gemm_w4_sym_a8",
        "w8a8": "gemm_w8_sym_a8",
        "w8a8_fp8": "gemm_fp8_e4m3_a8",
    }


def test_a_benchmark_is_written_three_ways(tmp_path: Path) -> None:
    write_bench(BENCH, tmp_path)
    (cell,) = json.loads((tmp_path / "bench.json").read_text())["cells"]
    assert cell["others"] == {BASE: 30.0, "a": 25.0, "b": 20.0}
    assert cell["share_of_limit"] == round(BENCH.limit(CELL), 3)
    row = "| 1000 x 2000 | 16 | 10.0 | 12.5 | 106 | 6 | 5% | 3.00 | 2.00 | 30.0 | 25.0 | 20.0 |"
    assert row in (tmp_path / "bench.md").read_text().splitlines()
    assert "c did not run: OSError: no" in markdown(BENCH)
    for name in ("speedup.svg", "roofline.svg"):
        ElementTree.fromstring((tmp_path / name).read_text())
    assert read([tmp_path / "bench.json"]) == BENCH


def test_earlier_runs_fill_a_document(tmp_path: Path) -> None:
    write_bench(BENCH, tmp_path)
    document = tmp_path / "page.md"
    document.write_text("before\n<!-- bench -->\nstale\n<!-- /bench -->\nafter\n")
    results, out = str(tmp_path / "bench.json"), str(tmp_path / "out")
    assert main(["bench", "--results", results, "--results", results, "--document", str(document), "--out", out]) == 0
    text = document.read_text()
    assert text.startswith("before\n<!-- bench -->\n\nA GPU")
    assert text.endswith("<!-- /bench -->\nafter\n")
    assert "stale" not in text
    assert text.count("| 1000 x 2000 |") == 2
    document.write_text("no marks")
    assert main(["bench", "--results", results, "--document", str(document), "--out", out]) == 3


def test_a_file_that_is_no_benchmark_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("[]")
    assert main(["bench", "--results", str(tmp_path / "x.json"), "--out", str(tmp_path)]) == 3
    assert "x.json" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("command", ["bench", "tune"])
def test_without_a_gpu_it_says_so(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command]) == 3
    assert "need a CUDA GPU" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--shape", "4096"), ("--tokens", "1,x"), ("--tokens", "0")])
def test_bad_arguments_are_usage_errors(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", option, value]) == 2
    assert value in capsys.readouterr().err


class Clock:
    """A CUDA event; the milliseconds of one replay after the other are told beforehand."""

    told: ClassVar[list[float]]

    def record(self) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, _: Clock) -> float:
        return self.told.pop(0)


@pytest.mark.parametrize(("lasting", "left", "expected"), [(0, [1, 1.5, 50], 2500), (30_000, [50], 2000)])
def test_a_time_is_the_median_of_replays_that_last(
    lasting: float, left: list[float], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The median of 2, 3, 2, 3 behind two that warm up; these six are 28 ms, and two more make it 30.5."""
    monkeypatch.setattr(Clock, "told", [9, 9, 2, 3, 2, 3, 1, 1.5, 50], raising=False)
    monkeypatch.setattr(torch.cuda, "Event", lambda **_: Clock())
    graph = cast(torch.cuda.CUDAGraph, SimpleNamespace(replay=lambda: None))
    assert measure.replay_time(graph, 4, lasting) == pytest.approx(expected)
    assert Clock.told == left


def test_places_are_looked_at_before_the_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the measuring was begun")

    monkeypatch.setattr("qspec.bench.run_bench", work)
    (tmp_path / "file").write_text("precious")
    for arguments, message in (
        (["--out", str(tmp_path / "file")], "cannot write here: Not a directory"),
        (["--document", str(tmp_path / "file")], "no <!-- bench --> .. <!-- /bench --> to write between"),
        (["--document", str(tmp_path / "absent.md")], "the document cannot be read"),
    ):
        assert main(["bench", "--quiet", *arguments]) == 3
        assert message in capsys.readouterr().err
    with pytest.raises(InputError, match="not a table of tuned kernels"):
        tuned.require_table(tmp_path / "file")
    tuned.require_table(tmp_path / "new/table.json")
    assert (tmp_path / "file").read_text() == "precious"


def test_what_was_measured_is_printed_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that fills up during the measuring: the table, then exit 3. Of `inspect` and `search` too."""

    def full(*_: object) -> None:
        raise MachineError("the disk is full")

    outcome = SimpleNamespace(found=[], folder=tmp_path)
    monkeypatch.setattr("qspec.bench.run_bench", lambda *_: BENCH)
    monkeypatch.setattr("qspec.inspect.inspect", lambda *_, **__: sample())
    monkeypatch.setattr(import_module("qspec.search.run"), "search", lambda *_, **__: outcome)
    monkeypatch.setattr("qspec.cli.search.render", lambda _: "  budget     bits")
    for name in ("bench.write_bench", "inspect.write_inspection", "search.report.write_report"):
        package, _, writer = name.rpartition(".")
        monkeypatch.setattr(import_module(f"qspec.{package}"), writer, full)
    out = ["--out", str(tmp_path), "--quiet"]
    for command, shown in (
        (["bench", *out], "| 1000 x 2000 | 16 |"),
        (["inspect", "m", *out], "massive"),
        (["search", "r.qs"], "  budget     bits"),
    ):
        assert main(command) == 3
        printed = capsys.readouterr()
        assert shown in printed.out
        assert "the disk is full" in printed.err


SHAPES = ((12288, 4096), (4096, 12288), (24576, 4096))
TARGET = re.compile(r"\| (W4A4|W4A16 g128|W8A8), M (\d+) \| ([\d.]+) \|(.+)\|(.+)\| ([\d.]+) (.+?) \|(.+)\|(.+)\|")
PEERS = {
    "humming W4A16": ("humming W4A16",),
    "humming W4A8": ("humming W4A8",),
    "best of humming W4A8, fp8": ("humming W4A8", "cuBLAS fp8"),
}


def shown(ratios: list[float], wanted: float) -> str:
    """Bold where it is reached on every shape."""
    text = " ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"**{text}**" if min(ratios) >= wanted else text


def test_the_documents_targets_are_judged_by_the_stored_runs() -> None:
    """Ours with input over the peers that quantize theirs: every figure and every bold mark of the table."""
    folder = Path(__file__).parents[2] / "docs/performance"
    runs = [read([folder / name]) for name in ("bench.json", "bench_h200.json")]
    page = folder.with_suffix(".md").read_text()
    rows = [match.groups() for match in TARGET.finditer(page)]
    assert len(rows) == 10
    for name, tokens, over_bf16, *bf16, over_peer, peer, first, second in rows:
        fmt = name.lower().replace(" ", "_")
        for run, base, against in zip(runs, bf16, (first, second), strict=True):
            cells = [c for s in SHAPES for c in run.cells if (c.format, c.channels, c.columns) == (fmt, *s)]
            cells = [cell for cell in cells if cell.tokens == int(tokens)]
            assert base.strip() == shown([cell.over(BASE) for cell in cells], float(over_bf16))
            least = [min(cell.over(one) for one in PEERS[peer]) for cell in cells]
            assert against.strip() == shown(least, float(over_peer))
    for gpu, bf16, peer in (("H100", 3, 7), ("H200", 4, 8)):  # the summary counts what is bold
        (counted,) = re.findall(rf"^\| {gpu}, .*$", page, flags=re.MULTILINE)
        reached = [sum("**" in row[place] for row in rows) for place in (bf16, peer)]
        assert [int(count) for count in re.findall(r"(\d+) of 10 reached", counted)] == reached
