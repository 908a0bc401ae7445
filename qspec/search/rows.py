"""The masked rows that a search measures its losses on, and the facts that its results depend on."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qspec.calibrate.tokens import CalibrationTokens, repetition, windows
from qspec.compiler import Inputs
from qspec.data import NotMeasured
from qspec.errors import InputError
from qspec.evaluate.forward import MaskedRow
from qspec.evaluate.nelbo import masked_rows
from qspec.language.printer import spec_data
from qspec.language.spec import Search, TaskRequest
from qspec.machine import machine_facts
from qspec.models.tokens import encode
from qspec.runtime import load_tokenizer
from qspec.search.losses import Measure

TRIAL_ROWS = 2  # rows that whole layouts are measured on, for each one of a probe
CHANNEL_TOKENS = 8  # calibration tokens that a search takes for each channel of the widest input
THREADS = 1  # of a job on a CPU: its sums are the same however many jobs run side by side


@dataclass(frozen=True)
class SearchRows:
    """What the losses are measured on. A layout's loss is a figure of one compile, so it is worth more rows, and they
    are others than those that the solver chose by: `TRIAL_ROWS` times as many. repetition: what is wrong with the text.
    """

    probes: list[MaskedRow]
    trials: list[MaskedRow]
    measure: Measure
    repetition: str | None = None


def search_rows(inputs: Inputs) -> SearchRows:
    """The rows, drawn with the search's seed, and how they lose.

    Raises InputError where the text is shorter than one row, or the task cannot be measured.
    """
    search = inputs.spec.search
    assert search is not None
    tokenizer = load_tokenizer(inputs.origin.folder)
    if search.task is not None:
        rows = [_task_rows(inputs, search, tokenizer, *part) for part in _parts(search)]
        return SearchRows(rows[0], rows[1], "nelbo")
    documents = inputs.sources.calibration(search.text or inputs.spec.calibrate.source).documents
    length = min(search.length, inputs.plan.shape.max_length)
    rows, said = [], None
    for samples, seed in _parts(search):
        generator = torch.Generator().manual_seed(seed)
        texts = windows(documents, tokenizer, inputs.plan.shape.vocab, samples, length, generator)
        rows.append(masked_rows(list(texts.ids), search.draws, seed))
        said = repetition(texts.distinct, texts.drawn) or said
    return SearchRows(rows[0], rows[1], "nelbo" if search.loss == "nelbo" else "kl", said)


def calibration(inputs: Inputs) -> CalibrationTokens:
    """What a search rewrites its blocks on: rows of the recipe's calibration, spread evenly over it.

    A Hessian of d channels is known well enough to choose between schemes from `CHANNEL_TOKENS` d tokens; what is found
    is compiled on all of them.
    """
    tokens = inputs.tokens
    rows, length = tokens.ids.shape
    widest = max(m.entry.in_features for m in inputs.plan.modules if m.entry.role.block is not None)
    wanted = min(rows, -(-CHANNEL_TOKENS * widest // length))
    chosen = torch.arange(wanted) * rows // wanted
    return replace(
        tokens,
        ids=tokens.ids[chosen],
        masked=tokens.masked[chosen],
        weight=tokens.weight[chosen],
        ratio=tokens.ratio[chosen],
    )


def _parts(search: Search) -> tuple[tuple[int, int], tuple[int, int]]:
    """Windows of text, and a seed: of the probes, and of the trials."""
    return (search.samples, search.seed), (TRIAL_ROWS * search.samples, seed_of(search, "trials"))


def seed_of(search: Search, name: str) -> int:
    """A seed for one of the search's draws."""
    return zlib.crc32(f"{search.seed}/{name}".encode())


def _task_rows(inputs: Inputs, search: Search, tokenizer: Any, samples: int, seed: int) -> list[MaskedRow]:
    """Prompts in full, with a share of each answer masked."""
    assert search.task is not None
    task = inputs.sources.task(TaskRequest(search.task, shots=0, limit=samples))
    if isinstance(task, NotMeasured):
        raise InputError(
            f"a search cannot lose on task {task.name}: {task.reason}",
            where=inputs.spec.source,
            hint="name another task, or a text",
        )

    shape = inputs.plan.shape

    def ids(text: str) -> Tensor:
        return torch.tensor(encode(tokenizer, text, shape.vocab), dtype=torch.int64)

    pairs = [(ids(item.prompt), ids(f" {item.answer.lstrip()}")) for item in task.items]
    pairs = [(p, a) for p, a in pairs if a.numel() and p.numel() + a.numel() <= shape.max_length]
    if not pairs:
        raise InputError(f"no item of {search.task} fits the model", where=inputs.spec.source)
    answers = masked_rows([answer for _, answer in pairs], search.draws, seed)
    prompts = [prompt for prompt, _ in pairs for _ in range(search.draws)]
    return [_after(prompt, row) for prompt, row in zip(prompts, answers, strict=True)]


def _after(prompt: Tensor, row: MaskedRow) -> MaskedRow:
    """The row behind a prompt that is all visible."""
    visible = torch.zeros(prompt.numel(), dtype=torch.bool)
    return MaskedRow(torch.cat([prompt, row.tokens]), torch.cat([visible, row.masked]))


def facts(inputs: Inputs, rows: SearchRows) -> dict[str, Any]:
    """What every result depends on beside its job: checkpoint, calibration, passes, rows, packages, kind of machine."""
    digest = hashlib.sha256()
    for row in (*rows.probes, *rows.trials):
        digest.update(row.tokens.numpy().tobytes() + row.masked.numpy().tobytes())
    tokens = {"tokens_sha256": inputs.tokens.sha256, "seed": inputs.spec.calibrate.seed}
    return {
        "model": inputs.lock.files,
        "calibration": tokens,
        "calibrated": calibration(inputs).sha256,
        "packages": inputs.lock.content["packages"],
        "machine": machine_facts(inputs.device, THREADS),
        "passes": [(use.text) for use in inputs.spec.passes],
        "rows": digest.hexdigest(),
        "measure": rows.measure,
    }


def scheme_texts(inputs: Inputs) -> dict[str, str]:
    """Name -> formats, for `jobs.key_of`."""
    return {name: repr(spec_data(asdict(scheme))) for name, scheme in inputs.spec.schemes.items()}
