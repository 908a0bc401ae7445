"""One worker's side of a search: the unquantized model, its states along the blocks, and the jobs run on them.

A job's result depends on the recipe's facts and on the job alone, not on the jobs before it nor on how many workers
there are: random numbers come from the seed and the job, and on a CPU one thread computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import cast

import torch
from torch import Tensor

from qspec.calibrate.stream import Stream
from qspec.compiler import Inputs
from qspec.models.decoder import Decoder
from qspec.models.decoder_block import DecoderBlock
from qspec.models.tokens import know_tokens
from qspec.passes.block import Block
from qspec.passes.linear import LinearView
from qspec.plan import BATCH_TOKENS, Plan
from qspec.precision import exact_products, fast_products
from qspec.progress import Quiet
from qspec.quantize import rewrite_block
from qspec.runtime import default_dtype, fill_block, load_tokenizer
from qspec.search.direction import Directed
from qspec.search.jobs import Errors, Fisher, Job, Noise, Probe, Result, Trial
from qspec.search.losses import Loss, LossRows
from qspec.search.rows import THREADS, calibration, search_rows, seed_of
from qspec.search.space import Choice, ProbeTarget, Space, assigned, find_space

NOISE = 0.05  # relative size of a noise probe: ||noise|| / ||W||
SCORES = 4  # backward passes of a Fisher probe
CPU_TOKENS = 2048  # of one forward pass on a CPU, whose caches hold no more: it takes a sixth less time than of 4096
STEP_BYTES = 1 << 30  # of trials' states that are kept for later ones


@dataclass
class _State:
    """The unquantized model at the input of block `index`: rows of the loss, and the calibration stream."""

    index: int
    rows: list[Tensor]
    stream: Stream


class Engine:
    """Runs jobs, one at a time."""

    def __init__(self, inputs: Inputs) -> None:
        if inputs.device.type == "cpu":
            torch.set_num_threads(THREADS)
        self.inputs = inputs
        self.space: Space = find_space(inputs.plan)
        self.device = inputs.device
        self.dtype = default_dtype(inputs.device)
        self.model: Decoder = know_tokens(
            inputs.checkpoint.load(self.device, self.dtype), load_tokenizer(inputs.origin.folder)
        )
        rows = search_rows(inputs)
        self.batch = CPU_TOKENS if inputs.device.type == "cpu" else BATCH_TOKENS
        self.rows = LossRows(self.model, rows.probes, rows.measure, self.batch)
        self.trial_rows = LossRows(self.model, rows.trials, rows.measure, self.batch)
        self._state = self._start(self.rows)
        self._drawn: list[list[Tensor]] | None = None
        self._steps = _Steps()

    @exact_products()
    def run(self, job: Job) -> Result:
        """The job's result as plain JSON values."""
        match job:
            case Probe():
                return self._probe(job)
            case Noise():
                return self._noise(job)
            case Errors():
                return self._errors(job)
            case Fisher():
                return self._fisher(job)
            case Trial():
                return self._trial({role: self._scheme(name) for role, name in job.schemes})

    # --- states ---

    def _start(self, rows: LossRows) -> _State:
        tokens = calibration(self.inputs)
        size = max(1, self.batch // tokens.ids.shape[1])
        exact = any(use.params.follows_exact for use in self.inputs.plan.spec.passes)
        return _State(0, rows.embedded(), Stream.start(self.model, tokens, size, self.device, exact=exact))

    def _at(self, index: int) -> _State:
        """The state at a block; jobs in the order of blocks only go forward."""
        if self._state.index > index:
            self._state = self._start(self.rows)
        state = self._state
        with torch.no_grad():
            while state.index < index:
                block = self.model.blocks[state.index]
                state.rows = self._through(block, self.rows, state.rows)
                state.stream.advance(block)
                for batch in state.stream.batches:
                    batch.exact = batch.x if batch.exact is not None else None
                state.index += 1
        return state

    def _through(self, block: DecoderBlock, rows: LossRows, states: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad(), fast_products():
            return [block(x, r.context) for x, r in zip(states, rows.references, strict=True)]

    def _loss_from(self, block: DecoderBlock, index: int, states: Sequence[Tensor]) -> Loss:
        """With `block` in the place of block `index`, whose inputs are `states`."""
        *before, last = [block, *self.model.blocks[index + 1 :]]
        for each in before:
            states = self._through(each, self.rows, states)
        return self.rows.loss(last, states)

    # --- blocks ---

    def _rewritten(self, plan: Plan, index: int, stream: Stream) -> Block:
        """A fresh copy of a block after the recipe's passes."""
        module = DecoderBlock(self.inputs.checkpoint.family, self.inputs.checkpoint.shape, index, device="meta")
        fill_block(module, {name: t.to(self.device) for name, t in self.inputs.checkpoint.block(index).items()})
        return rewrite_block(plan, index, module, stream, Quiet())

    def _probed(self, job: Probe | Errors | Fisher) -> Block:
        """The job's block of the unquantized model with its scheme on every target, not rounding yet."""
        choices: dict[str, Choice] = {str(m.entry.role): None for m in self.space.plan.block(job.block)}
        for target in job.targets:
            for part in target.parts:
                choices[f"blocks[{job.block}].{part}"] = self._scheme(job.scheme)
        block = self._rewritten(assigned(self.space.plan, choices), job.block, self._at(job.block).stream)
        for part, linear in block.linears.items():
            block.module.replace(part, LinearView(linear, rounding=False))
        return block

    def _scheme(self, name: str | None) -> Choice:
        return None if name is None else self.space.plan.spec.schemes[name]

    def _generator(self, name: str) -> torch.Generator:
        search = self.space.plan.spec.search
        assert search is not None
        return torch.Generator().manual_seed(seed_of(search, name))

    # --- jobs ---

    def _probe(self, job: Probe) -> Result:
        """For each target, the loss with its linears rounded and everything else as it was."""
        block, states = self._probed(job), self._at(job.block).rows
        losses = {}
        for target in job.targets:
            with _rounding(block, target):
                losses[str(target)] = asdict(self._loss_from(block.module, job.block, states))
        return losses

    def _noise(self, job: Noise) -> Result:
        """For each target, a = loss / t^2, for noise on its weights that makes a relative error t of its outputs.

        The linearity theorem of arXiv 2411.17525, whose t is the relative error of the weights themselves.
        """
        states = self._at(job.block).rows
        losses = {}
        for target in job.targets:
            module = self.inputs.checkpoint.load_block(job.block, self.device, self.dtype)
            watched = [_Noisy(module, part, self._generator(f"noise/{job.block}/{part}")) for part in target.parts]
            loss = self._loss_from(module, job.block, states)
            noise, signal = sum(w.noise for w in watched), sum(w.signal for w in watched)
            losses[str(target)] = asdict(loss.scaled(signal / noise if noise else 0.0))  # silent linears lose nothing
        return losses

    def _errors(self, job: Errors) -> Result:
        """For each target, t^2 = sum ||y^ - y||^2 / sum ||y||^2 of its outputs on the rows of the loss."""
        block, states = self._probed(job), self._at(job.block).rows
        totals = {str(target): [0.0, 0.0] for target in job.targets}
        for reference, x in zip(self.rows.references, states, strict=True):
            directed = _direct(block, job.targets, x.shape[0])
            with torch.no_grad():
                block.module(x, reference.context)
            for target, (_, linears) in directed.items():
                for linear in linears:
                    totals[target][0] += linear.noise
                    totals[target][1] += linear.signal
        return {target: noise / signal if signal else 0.0 for target, (noise, signal) in totals.items()}

    def _fisher(self, job: Fisher) -> Result:
        """For each target, the second order of KL: 1/2 E (sum_i g_i . dy)^2 / l a row.

        g: the gradient of -log p of tokens drawn from the unquantized model, at every masked position i; its square has
        the Fisher information as its mean, and the products of different positions have the mean 0.
        """
        block, states = self._probed(job), self._at(job.block).rows
        rows: dict[str, list[float]] = {str(target): [0.0] * len(self.rows.ratios) for target in job.targets}
        for reference, x, scores in zip(self.rows.references, states, self._scores(), strict=True):
            directed = _direct(block, job.targets, x.shape[0])
            steps = [step for step, _ in directed.values()]
            with torch.enable_grad():
                x = block.module(x, reference.context)
                for later in self.model.blocks[job.block + 1 :]:
                    x = later(x, reference.context)
                hidden = self.rows.at_masks(x, reference.batch)
            count = reference.batch.masked.sum(1).double().cpu()
            for number, score in enumerate(scores, 1):
                slopes = torch.autograd.grad(hidden, steps, score, retain_graph=number < len(scores))
                for target, slope in zip(directed, slopes, strict=True):
                    second = slope.double().cpu().square() / (2 * count * len(scores))
                    for row, value in zip(reference.batch.rows, second.tolist(), strict=True):
                        rows[target][row] += value
        return {target: asdict(self.rows.summary(values)) for target, values in rows.items()}

    def _scores(self) -> list[list[Tensor]]:
        """For each batch, `SCORES` draws of the gradient at the hidden states, made once."""
        if self._drawn is None:
            generator = self._generator("fisher")
            self._drawn = [
                [self.rows.score(reference, generator) for _ in range(SCORES)] for reference in self.rows.references
            ]
        return self._drawn

    def _trial(self, choices: Mapping[str, Choice]) -> Result:
        """The loss, also of every row, of the layout compiled as the compiler does it, each block calibrated on the
        rounded ones before it.

        Blocks that an earlier trial had alike, from the first one on, are not computed again.
        """
        plan = assigned(self.space.plan, choices)
        own = tuple(tuple(m.scheme for m in plan.block(index)) for index in range(len(self.model.blocks)))
        state = self._start(self.trial_rows)
        alike, step = self._steps.longest(own[:-1])
        if step is not None:
            state.rows = step.rows
            for batch, (x, exact) in zip(state.stream.batches, step.stream, strict=True):
                batch.x, batch.exact = x, exact
        for index in range(alike, len(own) - 1):
            exact_states = state.stream.exact_outputs(self.model.blocks[index])
            block = self._rewritten(plan, index, state.stream).module
            state.stream.advance(block, exact_states)
            state.rows = self._through(block, self.trial_rows, state.rows)
            kept = [(batch.x, batch.exact) for batch in state.stream.batches]
            self._steps.keep(own[: index + 1], _Step(state.rows, kept))
        last = self._rewritten(plan, len(own) - 1, state.stream).module
        each = self.trial_rows.each(last, state.rows)
        return {**asdict(self.trial_rows.summary(each)), "rows": each}


@dataclass(frozen=True)
class _Step:
    """A trial behind one of its blocks: the rows, and each calibration batch's states."""

    rows: list[Tensor]
    stream: list[tuple[Tensor, Tensor | None]]

    @property
    def bytes(self) -> int:
        tensors = [*self.rows, *(t for pair in self.stream for t in pair if t is not None)]
        return sum(t.numel() * t.element_size() for t in tensors)


Blocks = tuple[tuple[Choice, ...], ...]  # of a layout's first blocks, the schemes of their linears


class _Steps:
    """Steps of trials by the blocks before them, as many as `STEP_BYTES` hold: the furthest, which fewest share, go."""

    def __init__(self) -> None:
        self._kept: dict[Blocks, _Step] = {}

    def longest(self, blocks: Blocks) -> tuple[int, _Step | None]:
        """How many of these blocks, from the first one on, are behind some step, and that step."""
        for count in range(len(blocks), 0, -1):
            if blocks[:count] in self._kept:
                return count, self._kept[blocks[:count]]
        return 0, None

    def keep(self, blocks: Blocks, step: _Step) -> None:
        self._kept[blocks] = step
        while sum(kept.bytes for kept in self._kept.values()) > STEP_BYTES:
            del self._kept[max(self._kept, key=len)]


class _Noisy:
    """Puts noise on one linear of a plain block and watches what it does to the outputs."""

    def __init__(self, block: DecoderBlock, part: str, generator: torch.Generator) -> None:
        linear = cast(torch.nn.Linear, block.part(part))
        weight = linear.weight.detach()
        noise = torch.randn(weight.shape, generator=generator).to(weight.device)
        self.change = (NOISE * weight.float().norm() / noise.norm()) * noise
        self.noise = self.signal = 0.0
        linear.register_forward_hook(self._add)

    def _add(self, module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        change = inputs[0].float() @ self.change.T
        self.noise += float(change.double().square().sum())
        self.signal += float(output.double().square().sum())
        noisy: Tensor = output + change.to(output.dtype)
        return noisy


def _direct(block: Block, targets: Sequence[ProbeTarget], rows: int) -> dict[str, tuple[Tensor, list[Directed]]]:
    """Puts fresh `Directed`s in the place of the targets' linears. Returns each target's step [rows] and linears."""
    directed = {}
    for target in targets:
        step = torch.zeros(rows, device=block.linears[target.parts[0]].weight.device, requires_grad=True)
        linears = [Directed(block.linears[part], step) for part in target.parts]
        for part, linear in zip(target.parts, linears, strict=True):
            block.module.replace(part, linear)
        directed[str(target)] = (step, linears)
    return directed


@contextmanager
def _rounding(block: Block, target: ProbeTarget) -> Iterator[None]:
    """While it lasts, the target's linears round."""
    for part in target.parts:
        block.module.replace(part, block.linears[part])
    try:
        yield
    finally:
        for part in target.parts:
            block.module.replace(part, LinearView(block.linears[part], rounding=False))
