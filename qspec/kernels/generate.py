"""From a catalogue value to a Triton file: rendered from a template, named by its content, run from disk.

Templates get integers, truth values and words of the catalogue, all checked there; an undefined name
stops the rendering. A rendered file stands alone: it imports triton, states formula, shapes and layout
at its top, and has one function to call, `run`.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from qspec import resources
from qspec.catalog import (
    INTEGER,
    ActivationKernel,
    AttentionKernel,
    CommitKernel,
    ExpertsKernel,
    GemmKernel,
    LikeliestKernel,
    RotaryKernel,
    power_of_two,
    rotated_width,
)
from qspec.errors import InputError, MachineError
from qspec.files import machine_errors, read_input, write_whole
from qspec.kernels.describe_gemm import describe_gemm
from qspec.kernels.describe_rows import describe_rows
from qspec.kernels.emit import with_device_functions
from qspec.kernels.gemm_sizes import PIECE, GemmSizes, cublas_from

Kernel = ActivationKernel | GemmKernel | AttentionKernel | RotaryKernel | ExpertsKernel | LikeliestKernel | CommitKernel

DIGEST_LENGTH = 16  # hex digits in a file name
ROTATION_ROWS = 64  # of a large rotation that are in shared memory at once
CONFIDENCES = {
    "probability": "p[x0]",
    "margin": "p[x0] - p of the next likeliest token",
    "entropy": "sum over all tokens of p log p",
}
OPTIONAL = ("gain", "eps", "up", "rotation1", "permutation", "zero", "unit")  # parameters not all have


@lru_cache(maxsize=256)
def render(kernel: Kernel) -> str:
    """The source of a kernel's Triton file."""
    if isinstance(kernel, ActivationKernel):
        template, values = "row", _row_values(kernel)
    elif isinstance(kernel, AttentionKernel):
        template, values = "attention", {"width": kernel.width}
    elif isinstance(kernel, RotaryKernel):
        template, values = "rotary", {"width": kernel.width}
    elif isinstance(kernel, ExpertsKernel | CommitKernel):
        template, values = kernel.name, {}
    elif isinstance(kernel, LikeliestKernel):
        template, values = "likeliest", {"measure": kernel.measure, "formula": CONFIDENCES[kernel.measure]}
    else:
        template, values = _gemm_template(kernel), _gemm_values(kernel)
    text = _environment().get_template(f"triton/{template}.py.jinja").render(name=kernel.name, **values)
    text = text.strip("\n") + "\n"
    return with_device_functions(text)


def digest(source: str) -> str:
    """The part of a file's name that stands for its content."""
    return hashlib.sha256(source.encode()).hexdigest()[:DIGEST_LENGTH]


def file_name(kernel: Kernel) -> str:
    """`<name>_<digest>.py`."""
    return f"{kernel.name}_{digest(render(kernel))}.py"


def write(folder: Path, kernels: Iterable[Kernel]) -> dict[str, str]:
    """Writes one file for each kernel that is not there yet; returns name -> file name, sorted by name.

    A file appears whole or not at all. Raises MachineError or InputError where the folder cannot be written.
    """
    table = {}
    with machine_errors(folder):
        for kernel in sorted(kernels, key=lambda k: k.name):
            path, source = folder / file_name(kernel), render(kernel)
            if not (path.is_file() and path.read_bytes() == source.encode()):
                write_whole(path, source)
            table[kernel.name] = path.name
    return table


def load(path: Path, kernel: Kernel) -> ModuleType:
    """The module of a rendered file, which must be exactly what this version renders for `kernel`.

    An artifact is data: no line of it is executed unless it is our own. Raises InputError where the file
    is missing or differs, MachineError without Triton.
    """
    source = render(kernel)
    if _read(path, kernel) != source:
        raise _changed(path, kernel)
    # Triton reads a kernel's source back from its file, so the code object must carry the path. Executing
    # the text that was compared, not importing the file, leaves no gap between check and use, and no
    # bytecode behind.
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(compile(source, str(path), "exec"), module.__dict__)
    except ImportError as error:
        raise MachineError("Triton is not installed", hint="pip install triton") from error
    return module


def _read(path: Path, kernel: Kernel) -> str:
    try:
        return read_input(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"the kernel {kernel.name} is missing or unreadable", where=str(path), hint="compile the recipe again"
        ) from error


def _changed(path: Path, kernel: Kernel) -> InputError:
    return InputError(
        f"the file of kernel {kernel.name} was changed: its content does not have the digest of its name",
        where=str(path),
        hint="restore the file, or remove the artifact and compile the recipe again",
    )


def another_rendering(folder: Path, kernel: Kernel) -> Path | None:
    """The kernel's file of another version of qspec, where the folder has that one and not this version's.

    Raises InputError where that file does not have the content that its name stands for.
    """
    if (folder / file_name(kernel)).exists():
        return None
    named = re.compile(rf"{re.escape(kernel.name)}_([0-9a-f]{{{DIGEST_LENGTH}}})\.py")
    for path in sorted(folder.glob(f"{kernel.name}_*.py")):
        if found := named.fullmatch(path.name):
            if digest(_read(path, kernel)) != found[1]:
                raise _changed(path, kernel)
            return path
    return None


def cache_folder() -> Path:
    """Where kernels are rendered that no artifact brings: $XDG_CACHE_HOME/qspec/kernels."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "qspec" / "kernels"


class KernelLibrary:
    """The rendered kernels of one folder, each loaded once.

    folder: an artifact's kernels/; None renders into the cache folder what is asked for. So is, with a warning, a
    kernel of which the folder has what another version rendered: kernels are loaded for what the manifest says that
    they compute, and no other version's code is run.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._modules: dict[Kernel, ModuleType] = {}

    def __reduce__(self) -> tuple[Callable[..., KernelLibrary], tuple[Path | None]]:
        """A copy is the folder's one library: loaded kernels do not travel."""
        return library, (self.folder,)

    def module(self, kernel: Kernel) -> ModuleType:
        """The kernel's module. Raises InputError where the artifact lacks it, or its file was changed."""
        if kernel not in self._modules:
            self._modules[kernel] = load(self._folder_of(kernel) / file_name(kernel), kernel)
        return self._modules[kernel]

    def _folder_of(self, kernel: Kernel) -> Path:
        if self.folder is not None:
            if another_rendering(self.folder, kernel) is None:
                return self.folder
            warnings.warn(
                f"another version of qspec rendered the kernels in {self.folder}; "
                f"this version's run in their place, rendered into {cache_folder()}",
                stacklevel=2,
            )
        write(cache_folder(), [kernel])
        return cache_folder()


@lru_cache(maxsize=64)
def library(folder: Path | None) -> KernelLibrary:
    """One library for each folder, so that a model's layers share compiled kernels."""
    return KernelLibrary(folder)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(resources.codegen()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Python, not HTML; the values are integers and words of the catalogue
    )
    environment.filters["at"] = _at
    return environment


def _at(lines: str, columns: int) -> str:
    """Places a macro's lines: without blank lines around them, all but the first moved in by `columns`."""
    return lines.strip("\n").replace("\n", "\n" + " " * columns)


def _gemm_template(kernel: GemmKernel) -> str:
    if kernel.experts:
        return "gemm_experts"
    if kernel.activation_bits == 16:
        return "gemm_weight_only"
    if kernel.number == INTEGER:
        return "gemm_int"
    return "gemm_fp4" if kernel.pairs else "gemm_fp8"


def _gemm_values(kernel: GemmKernel) -> dict[str, Any]:
    """Groups of 0 are whole rows."""
    sizes, floating = GemmSizes.of(kernel), kernel.activation_bits == 16
    lifted = kernel.number == INTEGER and not floating
    return {
        "description": describe_gemm(kernel),
        "number": kernel.number,
        "w_bits": kernel.weight_bits,
        "a_bits": kernel.activation_bits,
        "w_group": kernel.weight_group or 0,
        "a_group": kernel.activation_group or 0,
        "step": sizes.step,
        "tile": sizes.tile,
        "span": sizes.span,
        "interleaved": kernel.interleaved,
        "gated": kernel.gated,
        "activation": kernel.activation if kernel.gated else "none",
        "experts": kernel.experts,
        "gemm": "gemm_weight_only" if floating else "gemm_int" if lifted else "gemm_fp8",
        "hopper": kernel.hopper,
        "fp8": kernel.number == "fp8_e4m3",
        "lift": 2 ** (8 - kernel.weight_bits) if lifted else 1,
        "sum_unit": "sum_weight_only_unit" if floating else "sum_quantized_unit",
        "cublas_from": cublas_from(kernel),
    }


def _row_parameters(kernel: ActivationKernel) -> tuple[str, ...]:
    """What `run` takes."""
    sources = {"plain": (), "rmsnorm": ("gain", "eps")}.get(kernel.source, ("up",))
    transforms = ((), ("rotation0",), ("rotation0", "rotation1", "permutation"))[len(kernel.rotations)]
    return ("x", *sources, *transforms, *kernel.results)


def _row_values(kernel: ActivationKernel) -> dict[str, Any]:
    quantize, rotations = kernel.bits != 16, kernel.rotations
    group = kernel.group or 1
    group_held = power_of_two(group)
    held = rotated_width(rotations[-1]) if rotations else 0
    apart = bool(rotations) and (held != rotations[-1] or group_held != group)
    names = _row_parameters(kernel)
    return {
        "documentation": describe_rows(kernel),
        "parameters": names,
        "results": kernel.results,
        "given": {name: name if name in names else "None" for name in OPTIONAL},
        "source": kernel.source,
        "activation": kernel.activation or "none",
        "read": 1 if rotations else group,
        "read_held": 1 if rotations else group_held,
        "blocks": rotations,
        "held": held,
        "depth": min(held, ROTATION_ROWS) if held > PIECE else held,
        "fine": kernel.bits == 8,
        "regroup": apart and kernel.group is not None,
        "quantize": quantize,
        "number": kernel.number,
        "symmetric": kernel.symmetric,
        "qmin": float(kernel.format.qmin) if quantize else None,
        "qmax": float(kernel.format.qmax) if quantize else None,
        "reach": float(kernel.format.reach) if quantize else None,
        "clip": kernel.clip,
        "group": kernel.group,
        "group_held": group_held,
        "hopper": kernel.hopper,
    }
