"""qspec: a declarative quantization compiler for diffusion LLMs.

    qspec.check("recipe.qs")              what is wrong with a recipe
    qspec.plan("recipe.qs")               every decision, from config.json alone
    qspec.diff("main:r.qs", "r.qs")       what changed, by meaning
    qspec.search("recipe.qs")             a scheme for every layer within a budget
    qspec.compile("recipe.qs")            an artifact with its report
    qspec.load("build/recipe")            (model, tokenizer) of an artifact or checkpoint
    qspec.generate(model, tokenizer, "")  text
    qspec.evaluate("build/recipe")        measurements of an artifact

The public names are loaded on first use, so that ``import qspec`` (and ``qspec check``) never pays for torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qspec.checked import check as check
    from qspec.compiler import CompileOptions as CompileOptions
    from qspec.compiler import compile as compile
    from qspec.diagnostics import RecipeError as RecipeError
    from qspec.difference import diff as diff
    from qspec.errors import InputError as InputError
    from qspec.errors import MachineError as MachineError
    from qspec.errors import NumericsError as NumericsError
    from qspec.errors import QspecError as QspecError
    from qspec.errors import UsageError as UsageError
    from qspec.evaluate import evaluate as evaluate
    from qspec.models.sampler import generate as generate
    from qspec.models.stream import stream as stream
    from qspec.planned import plan as plan
    from qspec.runtime import load as load
    from qspec.search.run import SearchOptions as SearchOptions
    from qspec.search.run import search as search

from qspec.version import __version__

_HOMES = {
    "CompileOptions": "qspec.compiler",
    "InputError": "qspec.errors",
    "MachineError": "qspec.errors",
    "NumericsError": "qspec.errors",
    "QspecError": "qspec.errors",
    "RecipeError": "qspec.diagnostics",
    "SearchOptions": "qspec.search.run",
    "UsageError": "qspec.errors",
    "check": "qspec.checked",
    "compile": "qspec.compiler",
    "diff": "qspec.difference",
    "evaluate": "qspec.evaluate",
    "generate": "qspec.models.sampler",
    "load": "qspec.runtime",
    "plan": "qspec.planned",
    "search": "qspec.search.run",
    "stream": "qspec.models.stream",
}
__all__ = [
    "CompileOptions",
    "InputError",
    "MachineError",
    "NumericsError",
    "QspecError",
    "RecipeError",
    "SearchOptions",
    "UsageError",
    "__version__",
    "check",
    "compile",
    "diff",
    "evaluate",
    "generate",
    "load",
    "plan",
    "search",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'qspec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


class _Callable(ModuleType):
    # a package that a public function has the name of: `qspec.plan(...)` calls that, `qspec.plan.Plan` is its own
    __doc__ = property(lambda self: self._function.__doc__)

    @property
    def _function(self) -> Any:
        name = self.__name__.rpartition(".")[2]
        return getattr(import_module(_HOMES[name]), name)

    @property
    def __signature__(self) -> Any:
        from inspect import signature

        return signature(self._function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


class _Package(ModuleType):
    """Importing a package below this one sets its name here, which may be that of a public function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOMES and isinstance(value, ModuleType):
            value.__class__ = _Callable
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
