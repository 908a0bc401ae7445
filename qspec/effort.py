"""How long an evaluation takes on a GPU: the tokens that go through a model, by its predicted time of a pass. No torch.

    written answer     items * steps * (prompt + length)                 every step is a pass over the canvas
    rated choices      items * choices * draws * (prompt + target)       every draw is a row
    one draw (MMLU)    items * (prompt + target)                         choices of one token share their pass
    NELBO              samples * 4 * 1024                                four masks of a window

    seconds            tokens / 4096 * (time of the linears of a pass over 4096 tokens, `qspec.latency`) * 1.35

Batches have 8,192 tokens, and time grows as the tokens from 4,096 on. The factor is what lies outside the linears:
attention, norms, logits, the host. On an H200 it was 1.2 to 1.7 (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qspec.language.presets import PRESETS
from qspec.language.spec import Evaluation, TaskRequest
from qspec.latency import REFERENCE, pass_time
from qspec.models.family import DecoderShape
from qspec.plan import ModulePlan, Plan
from qspec.plan.generating import TextSizes, generating_memory

BATCH_TOKENS = 8192  # of one forward pass
NELBO_DRAWS = 4
NELBO_WINDOW = 1024  # tokens of one sample, or as many as the model takes
OUTSIDE = 1.35  # times the linears
PASS = 4096  # tokens of the largest GEMMs that tuned tables have
LONG = 3600.0  # seconds from which on an evaluation is worth a thought
LIMITS = (500, 200, 100, 50, 16)  # items that are proposed
DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class TaskSize:
    """items; means in tokens: prompt without examples, each example (`shot`), a choice (`target`). choices: of an item,
    0 where an answer is written."""

    items: int
    prompt: float
    shot: float = 0.0
    choices: int = 0
    target: float = 0.0


# lm-eval's prompts, counted with cl100k_base on all items or 400 spread over the task; HellaSwag's on 1,000 of its
# 10,042. MATH's problems are not here: 75 tokens were taken for each.
SIZES: Mapping[str, TaskSize] = {
    "arc_challenge": TaskSize(1172, 31, choices=4, target=6.0),
    "arc_easy": TaskSize(2376, 27, choices=4, target=4.4),
    "gsm8k": TaskSize(1319, 107, shot=152.5),
    "hellaswag": TaskSize(10042, 31, choices=4, target=15.9),
    "humaneval": TaskSize(164, 131),
    "math": TaskSize(5000, 85, shot=152.5),
    "mbpp": TaskSize(500, 117, shot=170),
    "mmlu": TaskSize(14042, 120, shot=113.5, choices=4, target=1),
    "openbookqa": TaskSize(500, 13, choices=4, target=4.0),
    "piqa": TaskSize(1838, 13, choices=2, target=23.6),
    "winogrande": TaskSize(1267, 16, shot=22, choices=2, target=5.5),
}


@dataclass(frozen=True)
class Effort:
    """What an evaluation takes on `gpu`, predicted. here: whether that GPU is this machine's. memory: bytes that it
    holds at the peak, of both models and a batch. tokens: of each part, by name. baseline, quantized: seconds that a
    model takes for a token. unknown: tasks that are not counted."""

    gpu: str
    here: bool
    memory: int
    tokens: Mapping[str, float]
    baseline: float
    quantized: float
    unknown: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of both models."""
        return sum(self.tokens.values()) * (self.baseline + self.quantized)

    def as_json(self) -> dict[str, object]:
        """Plain values; seconds of both models."""
        rate = self.baseline + self.quantized
        parts = [{"name": name, "tokens": round(n), "seconds": round(n * rate, 1)} for name, n in self.tokens.items()]
        return {
            "gpu": self.gpu,
            "memory_bytes": self.memory,
            "seconds": round(self.seconds, 1),
            "parts": parts,
            "not_counted": list(self.unknown),
        }

    def __str__(self) -> str:
        """`about 21.0 h on NVIDIA H200 (unquantized 14.0 h, quantized 7.0 h), 20.1 GiB of GPU memory`."""
        total = sum(self.tokens.values())
        own = f"unquantized {duration(total * self.baseline)}, quantized {duration(total * self.quantized)}"
        where = self.gpu if self.here else f"an {self.gpu}, as no GPU is here"
        left_out = f"; without {', '.join(self.unknown)}" if self.unknown else ""
        memory = f"{self.memory / 2**30:.1f} GiB of GPU memory"
        return f"about {duration(self.seconds)} on {where} ({own}), {memory}{left_out}"


def effort(plan: Plan, evaluation: Evaluation, sizes: Mapping[str, TaskSize] = SIZES, gpu: str | None = None) -> Effort:
    """Of both models of a plan. sizes: of the tasks, by name. gpu: this machine's, found where it is None."""
    found = gpu or this_gpu()
    name = found or REFERENCE
    tokens = _tokens(plan, evaluation, sizes)
    quantized = [(block, len(places)) for block, places in plan.alike_blocks]
    plain = [(_unquantized(block), count) for block, count in quantized]
    unknown = tuple(one.name for one in evaluation.tasks if one.name not in sizes)
    memory = generating_memory(plan.shape, plan.bytes_before + plan.bytes_after, measured_at_once(plan.shape)).total
    return Effort(name, found is not None, memory, tokens, _seconds(plain, name), _seconds(quantized, name), unknown)


def _tokens(plan: Plan, evaluation: Evaluation, sizes: Mapping[str, TaskSize]) -> dict[str, float]:
    """Of each part, by name."""
    window = min(NELBO_WINDOW, plan.shape.max_length)
    tokens = {f"nelbo on {one.text.name}": float(one.samples * NELBO_DRAWS * window) for one in evaluation.nelbo}
    return tokens | {one.name: task_tokens(one, sizes[one.name]) for one in evaluation.tasks if one.name in sizes}


def measured_at_once(shape: DecoderShape) -> TextSizes:
    """Of a forward pass while a model is measured."""
    canvas = min(BATCH_TOKENS // 8, shape.max_length)
    return TextSizes(BATCH_TOKENS // canvas, canvas)


def task_tokens(request: TaskRequest, size: TaskSize) -> float:
    """That go through one model, by the formulas above."""
    preset = PRESETS.get(request.name)
    items = size.items if request.limit is None else min(request.limit, size.items)
    prompt = size.prompt + size.shot * (request.shots or 0)
    if not size.choices:
        return items * request.steps * (prompt + request.length)
    draws = preset.draws if preset else 128
    rows = items if draws == 1 else items * size.choices * draws
    return rows * (prompt + size.target)


def _unquantized(block: Sequence[ModulePlan]) -> list[ModulePlan]:
    return [replace(module, scheme=None, passes=(), kernels=None) for module in block]


def _seconds(blocks: Sequence[tuple[Sequence[ModulePlan], int]], gpu: str) -> float:
    """For a token of a large pass over the linears of these blocks, each so many times, and what lies between them."""
    return sum(pass_time(block, PASS, gpu) * count for block, count in blocks) * OUTSIDE / PASS / 1e9


def advice(plan: Plan, evaluation: Evaluation, found: Effort, sizes: Mapping[str, TaskSize] = SIZES) -> str | None:
    """What to do about an evaluation of hours; None for a shorter one."""
    if found.seconds < LONG:
        return None
    for limit in LIMITS:
        less = replace(found, tokens=_tokens(plan, evaluation.limited(limit), sizes))
        if less.seconds < LONG or limit == LIMITS[-1]:
            break
    option = "--quick" if limit == LIMITS[-1] else f"--limit {limit}"
    return f"evaluation takes hours: {option} measures a part in about {duration(less.seconds)}"


def duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def this_gpu() -> str | None:
    """The name of this machine's first GPU, as torch has it; None where its driver names none."""
    for file in sorted(DRIVER.glob("*/information")):
        for line in file.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key == "Model" and value.strip():
                return value.strip()
    return None
