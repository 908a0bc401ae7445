"""What whole denoising steps take: frozen values, the arithmetic on them, their file and their table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qspec.bench.data import own, ran_on, read_runs
from qspec.models.dream import DREAM
from qspec.models.family import DecoderShape, Family
from qspec.models.known import known_models
from qspec.models.llada import LLADA

KINDS = ("GEMM", "activation quantization", "attention", "rest")  # of GPU kernels, by what they do
OURS = (
    ("gemm_", "GEMM"),
    ("row_", "activation quantization"),
    ("attention_", "attention"),
    ("triton_", "rest"),
)  # how generated kernels' names begin
ATTENTION = re.compile(r"flash|fmha|attention|sdpa", re.IGNORECASE)
GEMM = re.compile(r"gemm|nvjet|cutlass|xmma|splitK", re.IGNORECASE)
PUBLISHED = {LLADA: "GSAI-ML/LLaDA-8B-Instruct", DREAM: "Dream-org/Dream-v0-Instruct-7B"}
MODELS: Mapping[str, tuple[Family, DecoderShape]] = {
    family.name: (family, family.shape(known_models()[name])) for family, name in PUBLISHED.items()
}


def kind_of(kernel: str) -> str:
    """What a GPU kernel does, by its name. Rows that leave as floats are norms, gates and transforms: "rest"."""
    for start, kind in OURS:
        if kernel.startswith(start):
            return "rest" if start == "row_" and "_float" in kernel else kind
    if ATTENTION.search(kernel):
        return "attention"
    return "GEMM" if GEMM.search(kernel) else "rest"


Span = tuple[str, float, float]  # a GPU kernel's name, and from when to when it runs


def parts_of(kernels: Sequence[Span]) -> dict[str, float]:
    """Time by kind. Where kernels overlap (programmatic launches do), the time is that of the one that began first."""
    parts: dict[str, float] = {}
    busy = -math.inf
    for name, start, end in sorted(kernels, key=lambda kernel: kernel[1]):
        kind = kind_of(name)
        parts[kind] = parts.get(kind, 0.0) + max(0.0, end - max(start, busy))
        busy = max(busy, end)
    return parts


@dataclass(frozen=True)
class Measured:
    """One step of one model.

    parts: milliseconds of its GPU kernels by kind (`parts_of`). kernels: how many run.
    """

    milliseconds: float
    parts: Mapping[str, float]
    kernels: int

    @property
    def idle(self) -> float:
        """Milliseconds in which no GPU kernel runs."""
        return max(0.0, self.milliseconds - sum(self.parts.values()))


@dataclass(frozen=True)
class Step:
    """A denoising step of a model as a recipe compiles it, and of the model in bf16, treated alike.

    tokens: that it computes, of a canvas of `canvas` tokens; fewer where a cache keeps the others. compiled: whether
    the blocks went through torch.compile.
    """

    model: str
    recipe: str
    tokens: int
    canvas: int
    compiled: bool
    ours: Measured
    base: Measured

    @property
    def ratio(self) -> float:
        """How many times faster than in bf16."""
        return self.base.milliseconds / self.ours.milliseconds


@dataclass(frozen=True)
class Steps:
    """One run. environment: versions and names."""

    environment: Mapping[str, str]
    steps: tuple[Step, ...]

    def as_json(self) -> dict[str, object]:
        """Everything measured, and the ratios."""
        return {**asdict(self), "steps": [{**asdict(step), "ratio": round(step.ratio, 3)} for step in self.steps]}


def read(paths: Sequence[Path]) -> Steps:
    """The runs of one GPU as one, from their step.json. Raises InputError where a file is none."""
    runs = read_runs(paths, _steps, "step.json", "qspec bench --step")
    return replace(runs[0], steps=tuple(step for run in runs for step in run.steps))


def _steps(data: dict[str, Any]) -> Steps:
    steps = [Step(**own(Step, s) | {name: Measured(**s[name]) for name in ("ours", "base")}) for s in data["steps"]]
    if not {kind for step in steps for kind in (*step.ours.parts, *step.base.parts)} <= set(KINDS):
        raise ValueError("a kind of GPU kernel that this version does not know")
    return Steps(data["environment"], tuple(steps))


def markdown(run: Steps) -> str:
    """One table for each model: milliseconds, the ratio, and where they go; of both models, ours first."""
    lines = [
        ran_on(run.environment),
        "Milliseconds of one step, medians of CUDA graphs: the model as the recipe compiles it / the same in bf16.",
    ]
    for model in dict.fromkeys(step.model for step in run.steps):
        head = ["recipe", "tokens", "torch.compile", "ms", "times faster", *KINDS, "idle", "GPU kernels"]
        lines += ["", f"**{model}**", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
        lines += [f"| {' | '.join(_row(step))} |" for step in run.steps if step.model == model]
    return "\n".join(lines) + "\n"


def _row(step: Step) -> list[str]:
    ours, base = step.ours, step.base
    return [
        step.recipe,
        f"{step.tokens} of {step.canvas}",
        "yes" if step.compiled else "no",
        f"{ours.milliseconds:.2f} / {base.milliseconds:.2f}",
        f"{step.ratio:.2f}",
        *(f"{ours.parts.get(kind, 0.0):.2f} / {base.parts.get(kind, 0.0):.2f}" for kind in KINDS),
        f"{ours.idle:.2f} / {base.idle:.2f}",
        f"{ours.kernels} / {base.kernels}",
    ]
