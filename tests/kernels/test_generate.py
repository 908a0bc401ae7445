"""The rendered sources, whole, and what may be run from a folder.

QSPEC_UPDATE_GOLDENS=1 rewrites the golden files; read the difference before keeping it.
"""

from __future__ import annotations

import ast
import errno
import os
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from qspec.catalog import (
    MEASURES,
    ActivationKernel,
    AttentionKernel,
    CommitKernel,
    ExpertsKernel,
    GemmKernel,
    LikeliestKernel,
    RotaryKernel,
)
from qspec.errors import InputError, MachineError
from qspec.kernels.generate import Kernel, KernelLibrary, digest, file_name, load, render, write

GOLDEN = Path(__file__).with_name("golden")
SHOWN: tuple[Kernel, ...] = (
    GemmKernel(4, None, True, 4, None, True),
    GemmKernel(4, 128, False, 4, 128, False),
    GemmKernel(8, None, True, 8, None, True),
    GemmKernel(4, 128, False, 16, None, True),
    GemmKernel(3, 128, False, 16, None, True),
    GemmKernel(3, 64, False, 16, None, True),  # uint3 asymmetric
    GemmKernel(8, None, True, 8, None, True, "fp8_e4m3"),
    GemmKernel(4, 16, True, 4, 16, True, "nvfp4"),
    GemmKernel(4, None, True, 4, None, True, gated=True),
    GemmKernel(4, 128, True, 16, None, True, gated=True),
    ActivationKernel((), 8, None, True, 1.0, number="fp8_e4m3"),
    ActivationKernel((128,), 4, 32, True, 0.9, number="mxfp4"),
    ActivationKernel((), 4, 16, True, 1.0, "rmsnorm", "nvfp4"),
    ActivationKernel((), 8, None, True, 1.0),
    ActivationKernel((), 8, 48, False, 1.0),
    ActivationKernel((), 4, 64, False, 1.0),
    ActivationKernel((), 8, None, True, 1.0, source="rmsnorm"),
    ActivationKernel((128, 96), 4, None, True, 1.0, source="silu_mul"),
    ActivationKernel((64,), 4, 128, True, 1.0),
    ActivationKernel((128,), 16, None, True, 1.0),
    ActivationKernel((), 16, None, True, 1.0, source="gelu_tanh_mul"),
    ActivationKernel((128, 128), 4, None, True, 0.9),
    ActivationKernel((64, 64), 8, 32, False, 1.0),
    ActivationKernel((128, 28), 4, None, True, 1.0),
    ActivationKernel((128, 148), 8, 64, False, 1.0),
    AttentionKernel(128),
    RotaryKernel(128),
    GemmKernel(4, None, True, 8, None, True, gated=True, experts=True, activation="gelu_tanh"),
    GemmKernel(4, 128, True, 16, None, True, experts=True),
    ExpertsKernel("sort"),
    ExpertsKernel("sum"),
    LikeliestKernel("margin"),
    CommitKernel(),
)
LONGEST_LINE = 120


def every_kernel() -> list[Kernel]:
    """Each choice of lines that a template can make."""
    groups = (None, 24, 64, 448, 1024)
    gemms = [
        GemmKernel(w, w_group, w_symmetric, a, a_group, a_symmetric)
        for w, w_group, w_symmetric, (a, a_group), a_symmetric in product(
            (3, 4, 7, 8), groups, (True, False), ((4, None), (8, 48), (8, 128)), (True, False)
        )
    ]
    floats = [
        GemmKernel(w, group, symmetric, 16, None, True)
        for w, group, symmetric in product(range(2, 9), groups, (True, False))
    ]
    floats += [replace(kernel, gated=True) for kernel in (*gemms[::7], *floats)]
    floats += [replace(kernel, experts=True) for kernel in (*gemms[::7], *floats[::5])]
    floats += [replace(kernel, activation="gelu_tanh") for kernel in floats[::9] if kernel.gated]
    rotations = [(), (16,), (128,), (128, 128), (64, 2), (64, 12), (32, 28), (128, 148), (128, 256)]
    rows = [
        ActivationKernel(sizes, bits, group, symmetric, clip)
        for sizes, (bits, clip), group, symmetric in product(rotations, ((4, 1.0), (8, 0.9)), groups, (True, False))
    ]
    transforms = [ActivationKernel(sizes, 16, None, True, 1.0) for sizes in rotations if sizes]
    rows += [replace(row, source=source) for row, source in product(rows, ("rmsnorm", "silu_mul"))]
    transforms += [
        ActivationKernel(sizes, 16, None, True, 1.0, source=source)
        for sizes, source in product(rotations, ("rmsnorm", "silu_mul", "gelu_tanh_mul"))
    ]
    for number, bits, group in (("fp8_e4m3", 8, None), ("mxfp4", 4, 32), ("nvfp4", 4, 16)):
        gemms += [GemmKernel(bits, group, True, bits, group, True, number)]
        gemms += [GemmKernel(bits, group, True, 16, None, True, number)]
        gemms += [replace(kernel, gated=True) for kernel in gemms[-2:]]
        floats += [replace(kernel, experts=True) for kernel in gemms[-4:] if not kernel.pairs or kernel.dense]
        rows += [
            ActivationKernel(sizes, bits, group, True, clip, source, number)
            for sizes, clip, source in product(rotations, (1.0, 0.9), ("plain", "rmsnorm", "silu_mul"))
        ]
    return [
        *gemms,
        *floats,
        *rows,
        *transforms,
        AttentionKernel(64),
        AttentionKernel(128),
        RotaryKernel(64),
        RotaryKernel(128),
        ExpertsKernel("sort"),
        ExpertsKernel("sum"),
        *map(LikeliestKernel, MEASURES),
        CommitKernel(),
    ]


@pytest.mark.parametrize("kernel", SHOWN, ids=lambda kernel: kernel.name)
def test_source_is_the_golden_one(kernel: Kernel) -> None:
    path = GOLDEN / f"{kernel.name}.py.txt"
    if os.environ.get("QSPEC_UPDATE_GOLDENS") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(render(kernel))
    assert path.is_file(), f"{path} is missing"
    assert render(kernel) == path.read_text()


def test_every_golden_file_belongs_to_a_kernel() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {f"{kernel.name}.py.txt" for kernel in SHOWN}


@pytest.fixture(scope="module")
def sources() -> dict[Kernel, str]:
    """Of `every_kernel`, rendered once."""
    return {kernel: render(kernel) for kernel in every_kernel()}


def test_every_source_reads_like_one_written_by_hand(sources: dict[Kernel, str]) -> None:
    for kernel, source in sources.items():
        lines = source.splitlines()
        assert lines[0].removeprefix('"""').startswith(kernel.name)
        assert max(map(len, lines)) <= LONGEST_LINE, kernel.name
        assert all(line == line.rstrip() for line in lines), kernel.name
        assert "\n\n\n\n" not in source, kernel.name
        assert source.endswith(")\n"), kernel.name


def test_every_source_is_a_module_with_its_entry(sources: dict[Kernel, str]) -> None:
    """Every tenth is parsed: parsing takes most of the time, and neighbours differ in a constant."""
    for kernel, source in list(sources.items())[::10]:
        tree = ast.parse(source)
        assert (ast.get_docstring(tree) or "").startswith(kernel.name)
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert {kernel.name, "run"} <= functions
        assert any(name.endswith("tiles") for name in functions), kernel.name


def test_names_tell_sources_apart(sources: dict[Kernel, str]) -> None:
    assert len(set(sources.values())) == len(sources)
    assert len({kernel.name for kernel in sources}) == len(sources)


def test_write_gives_the_table_and_is_repeatable(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    table = write(folder, SHOWN[:3])
    assert table == {k.name: f"{k.name}_{digest(render(k))}.py" for k in SHOWN[:3]}
    assert list(table) == sorted(table)
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert write(folder, SHOWN[:3]) == table
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    assert sorted(before) == sorted(table.values())


def test_write_to_a_place_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("")
    with pytest.raises(InputError, match="cannot write here"):
        write(tmp_path / "kernels", SHOWN[:1])


def test_a_kernel_that_is_there_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that can only be read serves; one that is full says so, and nothing half-written stays."""
    write(tmp_path, SHOWN[:1])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert list(write(tmp_path, SHOWN[:1])) == [SHOWN[0].name]
    with pytest.raises(MachineError, match="the disk is full"):
        write(tmp_path, SHOWN[:2])
    assert [path.name for path in tmp_path.iterdir()] == [file_name(SHOWN[0])]


def test_a_changed_file_is_not_run(tmp_path: Path) -> None:
    kernel, marker = SHOWN[0], tmp_path / "ran"
    write(tmp_path, [kernel])
    path = tmp_path / file_name(kernel)
    path.write_text(f"open({str(marker)!r}, 'w')\n" + render(kernel))
    with pytest.raises(InputError, match="was changed"):
        load(path, kernel)
    assert not marker.exists()


def test_another_versions_rendering_is_not_run_but_rendered_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was changed after that is neither; nor does a kernel's file stand for one of a longer name."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel, folder, marker = SHOWN[0], tmp_path / "kernels", tmp_path / "ran"
    source = f"open({str(marker)!r}, 'w')\n"
    theirs = folder / f"{kernel.name}_{digest(source)}.py"
    folder.mkdir()
    theirs.write_text(source)
    with pytest.warns(UserWarning, match="another version of qspec rendered the kernels"):
        module = KernelLibrary(folder).module(kernel)
    assert Path(str(module.__file__)) == tmp_path / "qspec" / "kernels" / file_name(kernel)
    theirs.write_text(f"{source}\n")
    with pytest.raises(InputError, match="was changed") as caught:
        KernelLibrary(folder).module(kernel)
    assert caught.value.where == str(theirs)
    assert not marker.exists()
    theirs.unlink()
    write(folder, [replace(kernel, gated=True)])
    with pytest.raises(InputError, match="missing"):
        KernelLibrary(folder).module(kernel)


def test_a_missing_file_is_an_error_not_a_fallback(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing") as caught:
        KernelLibrary(tmp_path).module(SHOWN[0])
    assert caught.value.where == str(tmp_path / file_name(SHOWN[0]))


def test_a_library_without_folder_renders_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = KernelLibrary()
    module = library.module(SHOWN[0])
    assert Path(str(module.__file__)).parent == tmp_path / "qspec" / "kernels"
    assert library.module(SHOWN[0]) is module
    assert [path.name for path in (tmp_path / "qspec" / "kernels").iterdir()] == [file_name(SHOWN[0])]
