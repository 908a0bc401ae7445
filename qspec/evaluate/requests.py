"""Whether all that a recipe wants measured can be, known before a model is loaded: hours before it is measured."""

from __future__ import annotations

from qspec.data import DataSources, NotMeasured
from qspec.evaluate import likelihood, nelbo, tasks
from qspec.evaluate.forward import Tokenizer
from qspec.language.spec import Evaluation
from qspec.models.family import DecoderShape


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
            likelihood.check_choices(task, tokenizer, shape)
        if not all(scoring.rated for scoring in task.scorings):
            tasks.prepared(shape, task, tokenizer, 0)
