"""One evaluation, as a function of two models, a request and data: nothing is read from an artifact here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from qspec.calibrate.rows import calibration_rows
from qspec.data import DataSources, NotMeasured, TaskData
from qspec.evaluate import outliers
from qspec.evaluate.code import running_code
from qspec.evaluate.forward import Progress as Parts
from qspec.evaluate.forward import Tokenizer
from qspec.evaluate.gates import judge
from qspec.evaluate.likelihood import measure_choices
from qspec.evaluate.nelbo import measure_nelbo
from qspec.evaluate.outliers import OutlierReport
from qspec.evaluate.results import Flips, KlBucket, Measurements, Metric, Sample, Speed, task_label
from qspec.evaluate.tasks import measure_task
from qspec.language.spec import Calibration, Evaluation, MaskDistribution, NelboRequest
from qspec.models.decoder import Decoder
from qspec.models.sampler import Denoiser
from qspec.progress import Progress, Quiet

OUTLIER_SAMPLES = 4
OUTLIER_LENGTH = 512


def measure(
    baseline: Denoiser,
    quantized: Denoiser,
    tokenizer: Tokenizer,
    evaluation: Evaluation,
    sources: DataSources,
    seed: int,
    progress: Progress | None = None,
) -> Measurements:
    """Everything that a recipe's `evaluate` block asks for, of both models, with equal seeds.

    Errors: InputError for data that cannot be read, NumericsError where logits are not finite.
    """
    run = _Run(baseline, quantized, tokenizer, seed, progress or Quiet())
    for request in evaluation.nelbo:
        run.nelbo(request, sources)
    not_measured = []
    with running_code(sources.run_code) as confined:
        for wanted in evaluation.tasks:
            task = sources.task(wanted)
            if isinstance(task, NotMeasured):
                not_measured.append(str(task))
            else:
                run.task(task)
    return Measurements(
        metrics=tuple(run.metrics),
        kl=tuple(run.kl),
        flips=tuple(run.flips),
        samples=tuple(run.samples),
        not_measured=tuple(not_measured),
        replacements=tuple(sources.replacements),
        seed=seed,
        timings=run.timings,
        gates=judge(evaluation.gates, run.metrics),
        isolation="; ".join(confined),
        speed=tuple(run.speed),
    )


def measure_outliers(
    baseline: Decoder,
    quantized: Decoder,
    tokenizer: Tokenizer,
    calibrate: Calibration,
    sources: DataSources,
) -> OutlierReport:
    """Outliers before and after on a few masked calibration sequences, drawn with the recipe's own seed.

    Where the recipe calibrates on rollouts, these are windows of their prompts' text.
    """
    wanted = Calibration(
        text=calibrate.source,
        samples=min(calibrate.samples, OUTLIER_SAMPLES),
        length=min(calibrate.length, baseline.shape.max_length, OUTLIER_LENGTH),
        mask=calibrate.mask or MaskDistribution(),
        seed=calibrate.seed,
    )
    text = sources.calibration(wanted.source)
    tokens = calibration_rows(text.documents, tokenizer, wanted, baseline.shape, lambda: baseline)
    return outliers.compare(baseline, quantized, tokens.ids)


@dataclass
class _Run:
    """Two models being measured, and what was found so far."""

    baseline: Denoiser
    quantized: Denoiser
    tokenizer: Tokenizer
    seed: int
    progress: Progress
    metrics: list[Metric] = field(default_factory=list)
    kl: list[KlBucket] = field(default_factory=list)
    flips: list[Flips] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    speed: list[Speed] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    def nelbo(self, request: NelboRequest, sources: DataSources) -> None:
        name, text = request.text.name, sources.heldout(request.text)
        with self._part(f"nelbo on {task_label(name, text.source)}") as parts:
            result = measure_nelbo(self.baseline, self.quantized, self.tokenizer, text, request, self.seed, parts)
        self.metrics.append(result.metric)
        self.kl.extend(result.kl)

    def task(self, task: TaskData) -> None:
        models = (self.baseline, self.quantized, self.tokenizer, task)
        name = task_label(task.name, task.source)
        for scoring in task.scorings:
            if scoring.rated:
                with self._part(f"{name}, choices") as parts:
                    self.metrics.append(measure_choices(*models, scoring, self.seed, parts))
                continue
            with self._part(name) as parts:
                result = measure_task(*models, scoring, self.seed, parts)
            self.metrics.append(result.metric)
            self.flips.append(result.flips)
            self.speed.extend([result.speed] if result.speed else [])
            self.samples.extend(result.samples)

    @contextmanager
    def _part(self, name: str) -> Iterator[Parts]:
        """Times one part and shows its counts."""
        start = time.perf_counter()
        yield partial(self.progress.part, name)
        self.timings[name] = time.perf_counter() - start
