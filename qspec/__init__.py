"""qspec: a declarative quantization compiler for diffusion LLMs.

The public names are loaded on first use, so that ``import qspec`` (and ``qspec check``) never pays for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qspec.compiler import compile as compile
    from qspec.evaluate import evaluate as evaluate
    from qspec.models.sampler import generate as generate
    from qspec.runtime import load as load

from qspec.version import __version__

__all__ = ["__version__", "compile", "evaluate", "generate", "load"]

_HOMES = {
    "compile": "qspec.compiler",
    "evaluate": "qspec.evaluate",
    "generate": "qspec.models.sampler",
    "load": "qspec.runtime",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'qspec' has no attribute {name!r}")
