"""What a recipe wants measured, looked at before a model is loaded: whether it can be, and how many hours it takes."""

from __future__ import annotations

from collections.abc import Iterable
from math import fsum

import torch

from qspec.data import DataSources, NotMeasured, TaskData, spread
from qspec.effort import TaskSize, advice, effort
from qspec.evaluate import likelihood, nelbo, tasks
from qspec.evaluate.forward import Tokenizer
from qspec.language.spec import Evaluation
from qspec.models.family import DecoderShape
from qspec.models.tokens import encode
from qspec.plan import Plan
from qspec.progress import Progress

COUNTED = 32  # items of a task whose tokens are counted


def check_requests(evaluation: Evaluation, sources: DataSources, tokenizer: Tokenizer, shape: DecoderShape) -> None:
    """Raises InputError for what the measurements would refuse: texts that are too short, prompts and choices that
    are longer than the model, sampler lengths that do not divide.
    """
    for request in evaluation.nelbo:
        nelbo.windows(sources.heldout(request.text), tokenizer, shape.vocab, 1, nelbo.SHORTEST)
    for wanted in evaluation.tasks:
        task = sources.task(wanted)
        if isinstance(task, NotMeasured):
            continue
        if any(scoring.rated for scoring in task.scorings):
            likelihood.require_masks(shape)
            likelihood.check_choices(task, tokenizer, shape)
        if not all(scoring.rated for scoring in task.scorings):
            tasks.prepared(shape, task, tokenizer, 0)


def tell_effort(
    plan: Plan,
    evaluation: Evaluation,
    sources: DataSources,
    tokenizer: Tokenizer,
    device: torch.device,
    progress: Progress,
) -> None:
    """Notes that an evaluation takes hours on a GPU, if it does, and how to have a part of it. It asks nothing: whoever
    would answer may be away, and what is measured until it is interrupted is kept."""
    if device.type != "cuda":
        return
    tasks = (sources.task(wanted) for wanted in evaluation.tasks)
    sizes = {task.name: task_size(task, tokenizer, plan.shape.vocab) for task in tasks if isinstance(task, TaskData)}
    found = effort(plan, evaluation, sizes, torch.cuda.get_device_name(device))
    if wise := advice(plan, evaluation, found, sizes):
        progress.note(f"measuring takes {found}")
        progress.note(f"{wise}; what is measured is kept, so that it can be interrupted")


def task_size(task: TaskData, tokenizer: Tokenizer, vocab: int) -> TaskSize:
    """The task's items, their tokens counted on some of them."""

    def tokens(texts: Iterable[str]) -> float:
        counts = [len(encode(tokenizer, text, vocab)) for text in texts]
        return fsum(counts) / max(1, len(counts))

    some = spread(task.items, COUNTED)
    if not task.scorings[0].rated:
        return TaskSize(len(task.items), tokens(item.prompt for item in some))
    choices = [choice for item in some for choice in item.choices]
    context, target = tokens(one.context for one in choices), tokens(one.text for one in choices)
    return TaskSize(len(task.items), context, choices=round(len(choices) / len(some)), target=target)
