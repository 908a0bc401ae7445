"""The tasks that a recipe names without quotes, with the settings that published results have.

Examples, draws, lengths, steps and blocks are those of the scripts of "Quantization Meets dLLMs" (arXiv 2508.14896;
github.com/FelixMessi/QDLM, scripts/llada_*.sh at a106d70), the same for all its methods: one token a step, no
classifier-free guidance. LLaDA's own evaluation (github.com/ML-GSAI/LLaDA, evaluation/eval.sh) takes five examples for
WinoGrande, four for MATH, and 1024 tokens; OpenBookQA is in neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A task as it is measured unless a recipe says otherwise.

    task: its name in lm-eval. metric: which of its numbers is reported. shots: solved examples before each item.
    length, steps, block: the sampler's, where an answer is written. draws: of each likelihood, where choices are rated.
    """

    title: str
    task: str
    metric: str
    shots: int = 0
    length: int = 256
    steps: int = 256
    block: int = 32
    draws: int = 128

    @property
    def rated(self) -> bool:
        """Whether choices are rated; else an answer is written."""
        return self.metric.startswith("acc")


PRESETS: Mapping[str, Preset] = {
    "arc_challenge": Preset("ARC-Challenge", "arc_challenge", "acc_norm"),
    "arc_easy": Preset("ARC-Easy", "arc_easy", "acc"),
    "gsm8k": Preset("GSM8K", "gsm8k", "exact_match,flexible-extract", shots=4),
    "hellaswag": Preset("HellaSwag", "hellaswag", "acc_norm"),
    "humaneval": Preset("HumanEval", "humaneval", "pass@1", length=512, steps=512),
    "math": Preset("MATH", "minerva_math", "exact_match", block=64),
    "mbpp": Preset("MBPP", "mbpp", "pass_at_1", shots=3, length=512, steps=512),
    "mmlu": Preset("MMLU", "mmlu", "acc", shots=5, draws=1),
    "openbookqa": Preset("OpenBookQA", "openbookqa", "acc_norm"),
    "piqa": Preset("PIQA", "piqa", "acc"),
    "winogrande": Preset("WinoGrande", "winogrande", "acc"),
}


def harness_name(task: str) -> str:
    """What lm-eval calls a task of a recipe."""
    return PRESETS[task].task if task in PRESETS else task
