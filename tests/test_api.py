"""The public names: listed, documented, loaded when used, and never with torch where none is needed."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import qspec
from qspec.plan import Plan
from tests.language.fakes import ROOT

RECIPE = ROOT / "recipes" / "llada_w4a4.qs"
FUNCTIONS = {"check", "compile", "diff", "evaluate", "generate", "load", "plan", "search"}


def test_the_names_are_listed() -> None:
    assert {"QspecError", "RecipeError", "InputError", "MachineError", "NumericsError", "UsageError"} < {*qspec.__all__}
    assert set(qspec.__all__) > FUNCTIONS
    assert set(qspec.__all__) == {*qspec._HOMES, "__version__"}
    assert set(qspec.__all__) <= set(dir(qspec))
    assert issubclass(qspec.RecipeError, qspec.QspecError)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = qspec.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_each_function_says_what_it_does(name: str) -> None:
    """Also where a package has its name, before and after that is imported."""
    before = getattr(qspec, name)
    importlib.import_module(qspec._HOMES[name])
    function = getattr(qspec, name)
    home = getattr(importlib.import_module(qspec._HOMES[name]), name)
    assert inspect.isfunction(home)
    for one in (before, function):
        assert callable(one)
        assert inspect.getdoc(one) == inspect.getdoc(home)
        assert inspect.signature(one) == inspect.signature(home)
    assert "Raises" in (home.__doc__ or "") or "Errors" in (home.__doc__ or "")


def test_a_package_with_a_functions_name_is_both() -> None:
    import qspec.plan as package

    assert package.Plan is Plan
    found = package(RECIPE, "tiny-llada")
    assert isinstance(found, Plan)


FRONT = """
import sys
import qspec
dir(qspec)
recipe = sys.argv[1]
assert qspec.check(recipe).ok
assert qspec.plan(recipe, "tiny-llada").bits_per_weight > 4
assert not qspec.diff(recipe, recipe, "tiny-llada")
try:
    qspec.plan(recipe, "nowhere/nothing")
except qspec.InputError as error:
    print(error.what)
heavy = {"torch", "transformers", "triton", "numpy", "safetensors"} & {*sys.modules}
assert not heavy, heavy
"""


def test_checking_and_planning_never_load_torch() -> None:
    done = subprocess.run([sys.executable, "-c", FRONT, str(RECIPE)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "there is no config.json of 'nowhere/nothing' on this machine\n"


def test_check_is_what_the_command_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qspec.cli import main

    path = tmp_path / "r.qs"
    path.write_text((ROOT / "tests" / "errors" / "readme.qs").read_text())
    found = qspec.check(path)
    assert not found.ok
    assert main(["check", str(path)]) == 1
    assert capsys.readouterr().out == f"{found} in 1 recipe\n"
    assert "<pre>error[QS005]: found `chanel`" in found._repr_html_()
    path.write_text(RECIPE.read_text().replace("uniform(0.0, 1.0)", "uniform($low, 1.0)") + "param low = 0.5\n")
    assert qspec.check(path).ok
    assert not qspec.check(path, {"low": "2.0"}).ok
    path.write_bytes(b"\xff\x00")
    assert [d.code for d in qspec.check(path).problems] == ["QS001"]
    with pytest.raises(qspec.InputError, match="cannot be read"):
        qspec.check(tmp_path / "nothing.qs")


def test_a_plan_shows_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from qspec.cli import main

    found = qspec.plan(RECIPE, "tiny-llada")
    assert main(["plan", str(RECIPE), "--model", "tiny-llada"]) == 0
    assert capsys.readouterr().out == f"{found}\n"
    assert repr(found) == "<Plan llada_w4a4: llada, 6 blocks, 7.087 bits per weight in the blocks>"
    page = found._repr_html_()
    for text in (
        "llada_w4a4: llada, 6 blocks, width 256, ffn 768",
        '<td style="text-align: left">layers head, embedding keep</td><td style="text-align: right">2</td>',
        "blocks[3..5].mlp.down",
        "one GEMM: blocks[0..5]: attention.q + attention.k + attention.v",
    ):
        assert text in page
    assert found.notice is None
    other = tmp_path / "r.qs"
    other.write_text(RECIPE.read_text().replace("GSAI-ML/LLaDA-8B-Instruct", "no/model"))
    notice = "no/model is not on this machine: planning for the bundled stand-in tiny-llada instead"
    assert qspec.plan(other).notice == notice
    assert str(qspec.plan(other)).startswith(f"{notice}\n\nllada_w4a4: llada, 6 blocks")
    assert qspec.plan(other)._repr_html_().startswith(f"<p>{notice}</p>")


def test_a_model_loads_and_writes_without_the_compiler_of_torch() -> None:
    """torch._dynamo and sympy take more than a second of a process."""
    code = (
        "import sys; from qspec import generate, load; generate(*load('tiny-llada', device='cpu'), 'a', 2, block=2); "
        "assert not {'torch._dynamo', 'sympy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
