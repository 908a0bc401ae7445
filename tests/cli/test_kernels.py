"""`qspec kernels`: from a recipe and from an artifact's manifest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from qspec import resources
from qspec.catalog import PACKING, GemmKernel
from qspec.cli import kernels as command
from qspec.cli import main
from qspec.kernels.ahead import AheadReport
from qspec.kernels.generate import Kernel, file_name, render
from qspec.manifest import FORMAT, CalibrationRecord, Manifest, ModelRecord, ModuleRecord

KERNEL = GemmKernel(8, None, True, 16, None, True)


def artifact(folder: Path, gemm: dict[str, object]) -> Path:
    """A folder with a manifest of one layer."""
    model = ModelRecord(id="m", revision="main", family="llada", standin=False, replacements=(), files={})
    layer = ModuleRecord(
        role="blocks[0].mlp.up",
        module="up",
        scheme="s",
        label="W8A16",
        bits=8.0,
        in_features=64,
        out_features=64,
        bias=False,
        rule=None,
        passes=(),
        gemm=asdict(KERNEL),
    )
    made = Manifest(
        format=FORMAT,
        packing=PACKING,
        qspec="0",
        name="r",
        recipe="",
        model=model,
        calibration=CalibrationRecord(
            tokens_sha256="0",
            text='"wikitext2"',
            samples=1,
            length=8,
            mask="uniform(0.0, 1.0)",
            draws=1,
            rows=1,
            weigh="masked 1.0, unmasked 1.0",
            seed=0,
            distinct=32,
            drawn=32,
        ),
        modules=(layer,),
        kernels=(),
        bits_per_weight=8.0,
        bits_per_weight_model=9.0,
        bytes_before=2,
        bytes_after=1,
        files={},
    )
    layer = layer.model_copy(update={"gemm": gemm})  # which validates nothing
    sealed = made.model_copy(update={"modules": (layer,)}).sealed()
    folder.mkdir(exist_ok=True)
    (folder / "qspec.json").write_text(sealed.text())
    return folder


def output(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


def test_lists_a_recipes_kernels_with_their_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", str(resources.recipes() / "llada_w4a4.qs")]) == 0
    rows = [line.split() for line in output(capsys).splitlines()]
    assert [name for name, _ in rows] == sorted(name for name, _ in rows)
    assert any(name.startswith("gemm_w4") for name, _ in rows)
    assert any(name.startswith("row_rotate_permute_rotate") for name, _ in rows)
    assert all(file.startswith(f"{name}_") and file.endswith(".py") for name, file in rows)


def test_lists_an_artifacts_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", str(artifact(tmp_path / "out", asdict(KERNEL)))]) == 0
    assert output(capsys) == f"{KERNEL.name}  {file_name(KERNEL)}\n"


def test_prints_one_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = artifact(tmp_path / "out", asdict(KERNEL))
    assert main(["kernels", str(folder), "--print", KERNEL.name]) == 0
    assert output(capsys) == render(KERNEL)


def test_an_unknown_kernel_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = artifact(tmp_path / "out", asdict(KERNEL))
    assert main(["kernels", str(folder), "--print", "gemm_w8_sym_a61"]) == 2
    assert f"did you mean {KERNEL.name}?" in capsys.readouterr().err


def test_check_compiles_for_the_targets_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = artifact(tmp_path / "out", asdict(KERNEL))
    assert main(["kernels", str(folder), "--check", "--target", "sm_90"]) == 0
    (line,) = output(capsys).splitlines()
    assert line.startswith(f"{KERNEL.name}  sm_90   ok  (")
    assert "wgmma" in line


def test_check_fails_where_a_kernel_is_not_as_it_must_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def spilled(jobs: Sequence[tuple[Kernel, str]]) -> Iterator[AheadReport]:
        for kernel, target in jobs:
            problems = ("48 bytes of stack",) if target == "sm_90" else ()
            yield AheadReport(kernel.name, target, ("mma.sync",), 255, 48, 0, problems)

    monkeypatch.setattr(command, "compile_all", spilled)
    folder = artifact(tmp_path / "out", asdict(KERNEL))
    assert main(["kernels", str(folder), "--check"]) == 3
    shown = capsys.readouterr()
    assert [line.split("  ")[1] for line in shown.out.splitlines()] == ["sm_80", "sm_90", "sm_100"]
    assert "48 bytes of stack" in shown.out
    assert "1 compiled kernels are not as they must be" in shown.err


@pytest.mark.slow
def test_check_ends_without_a_word_of_the_compilers_bindings(tmp_path: Path) -> None:
    """A Gluon kernel compiled anew left thirty lines of "nanobind: leaked ..." behind the verdict."""
    folder = artifact(tmp_path / "out", asdict(GemmKernel(8, None, True, 8, None, True)))
    command = [sys.executable, "-m", "qspec", "kernels", str(folder), "--check", "--target", "sm_90"]
    fresh = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, env=fresh, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("\n"), done.stdout.split()[2]) == (0, 1, "ok")
    assert "leaked" not in done.stderr


@pytest.mark.parametrize("gemm", [{"bits": 4}, {**asdict(KERNEL), "weight_bits": 9}])
def test_a_manifest_with_no_kernel_of_ours(
    gemm: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels", str(artifact(tmp_path / "out", gemm))]) == 3
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("source", ["nowhere", "."])
def test_neither_artifact_nor_recipe(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", source]) == 3
    assert "qspec:" in capsys.readouterr().err
