"""What a kernel file brings along of the device functions."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from qspec import resources
from qspec.kernels import emit

FIRST = """import triton
from triton import language as tl

LIMIT = tl.constexpr(4)  # of something


@triton.jit
def double(x):
    return x * LIMIT
"""
SECOND = """import triton

from .first import double


@triton.jit
def quadruple(x):
    return double(double(x))


@triton.jit
def unused(x):
    return x
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "zfirst.py").write_text(FIRST.replace(".first", ".zfirst"))
    (tmp_path / "asecond.py").write_text(SECOND.replace(".first", ".zfirst"))
    return tmp_path


def test_definitions_follow_those_that_they_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit, "read_library", lambda _, read=emit.read_library: read(folder))
    text = emit.closure(frozenset({"quadruple"}))
    assert text.splitlines()[:2] == ["import triton", "from triton import language as tl"]
    assert [line for line in text.splitlines() if line.startswith(("def ", "LIMIT"))] == [
        "LIMIT = tl.constexpr(4)  # of something",
        "def double(x):",
        "def quadruple(x):",
    ]


def test_names_of_a_functions_own_bring_nothing_along(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "third.py").write_text("def triple(unused):\n    double = 3 * unused\n    return double\n")
    monkeypatch.setattr(emit, "read_library", lambda _, read=emit.read_library: read(folder))
    text = emit.with_device_functions('"""A file."""\n\ndef quadruple(x):\n    return triple(quadruple(x))\n')
    functions = [line for line in text.splitlines() if line.startswith("def ")]
    assert functions == ["def triple(unused):", "def quadruple(x):"]


def test_a_name_that_two_modules_define_is_refused(folder: Path) -> None:
    (folder / "third.py").write_text("def double(x):\n    return x\n")
    with pytest.raises(ValueError, match="double is defined twice"):
        emit.read_library(folder)


def test_every_device_function_says_what_it_does() -> None:
    for path in sorted((resources.codegen() / "device").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_device_functions_take_few_arguments() -> None:
    """Groups of arguments count as one; `self` there is none."""
    for path in sorted((resources.codegen() / "device").glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                assert len(node.args.args) <= 8, f"{path.name}: {node.name}"


def test_templates_hold_little_but_text() -> None:
    """Fewer than one line in twenty of codegen/ is a template's tag: kernels are device functions."""
    files = [path for path in resources.codegen().rglob("*") if path.suffix in (".py", ".jinja")]
    lines = [line for path in files for line in path.read_text().splitlines()]
    tags = [line for line in lines if re.search(r"\{[%#]", line)]
    assert len(files) > 40
    assert len(tags) < len(lines) / 20
