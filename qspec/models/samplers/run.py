"""One run of a sampler: the rows that it fills, of which those that are not finished lie on a canvas."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.models.engine import Runner
from qspec.models.samplers.cached import Cache, require_keys
from qspec.models.samplers.canvas import WHOLE, Canvas, CanvasShape, Pass
from qspec.models.samplers.common import SampleStep


@dataclass(frozen=True)
class Rows:
    """Prompts and the masks behind them: ids int64 [b, prompt + length], real bool alike; None, all are."""

    ids: Tensor
    real: Tensor | None
    prompt: int


@dataclass(frozen=True)
class Decided:
    """What step `index` decided, to be looked at before the next one.

    through: how much of the text this step and those before it were about. whole: gives what was chosen, over whole
    texts. passes: through the model, that the step took.
    """

    index: int
    through: int
    whole: Callable[[], SampleStep]
    passes: int = 1


class Tally:
    """How many steps a sampler made, and how many tokens of a text they were about."""

    def __init__(self) -> None:
        self.steps = self.tokens = 0

    def add(self, decided: Decided) -> None:
        self.steps += decided.passes
        self.tokens = max(self.tokens, decided.through)

    def join(self, other: Tally) -> None:
        """Counts what was made for other texts."""
        self.steps += other.steps
        self.tokens += other.tokens

    @property
    def tokens_a_step(self) -> float:
        return self.tokens / max(self.steps, 1)

    def __str__(self) -> str:
        return f"{self.tokens} tokens in {self.steps} steps, {self.tokens_a_step:.1f} a step"


Steps = Generator[Decided, None, Tensor]  # one after another; then all rows, int64 [b, prompt + length]


class Run:
    """Errors: UsageError where a cache is asked for and the model has none."""

    def __init__(self, runner: Runner, rows: Rows, seed: int, *, cache: Cache | None, guided: bool = False) -> None:
        if cache is not None:
            require_keys(runner.model)
        self.model, self.ids = runner.model, rows.ids.clone()
        self._runner, self._given, self._seed, self._cache, self._guided = runner, rows, seed, cache, guided
        self._first = self._later = WHOLE
        self._place(range(len(self.ids)))

    def _place(self, rows: Sequence[int]) -> None:
        self._rows = torch.tensor(rows, dtype=torch.int64, device=self.ids.device)
        ids, real = self.ids[self._rows], self._given.real
        if real is not None:
            real = real[self._rows]
        length = self._runner.length(ids.shape[1])
        padded = length > ids.shape[1] or (real is not None and not bool(real.all()))
        self.canvas = self._runner.canvas(CanvasShape(len(rows), length, padded, self._guided))
        self.canvas.start(self.model, ids, real, self._given.prompt, rows)
        self.canvas.seed.fill_(self._seed)
        if self._cache is not None:
            self._runner.keep(self.canvas)

    def block(self, first: int, count: int) -> None:
        """The steps from here on fill `count` tokens from the text's `first` on."""
        start = self._given.prompt + first
        begin = max(0, start - self.model.shape.shift)
        self.canvas.window(start, begin)
        if self._cache is None:
            return
        tokens = start + count - begin if self._cache == "dual" else self._runner.length(self.ids.shape[1] - begin)
        self._first, self._later = Pass(kept=True), Pass(kept=True, tokens=tokens)

    def step(
        self, index: int, key: Hashable, compute: Callable[[Canvas, Pass], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """What step `index` of the run computes, which may be overwritten by the next one. key: all that `compute`
        depends on besides the canvas."""
        part, self._first = self._first, self._later
        canvas = self.canvas
        canvas.step.fill_(index)
        return self._runner.run(canvas, (key, part), lambda: compute(canvas, part))

    def decided(self, index: int, first: int, parts: Sequence[Tensor]) -> Decided:
        """parts: what was chosen, the tokens and their confidences [b, n], from the text's `first` on."""
        through, rows = first + parts[0].shape[1], self._rows

        def whole() -> SampleStep:
            wholes = []
            for part in parts:
                texts = part.new_zeros(len(self.ids), self.ids.shape[1] - self._given.prompt)
                texts[rows, first:through] = part
                wholes.append(texts)
            return SampleStep(index, *wholes)

        return Decided(index, through, whole)

    def text(self) -> Tensor:
        """The new tokens of the rows on the canvas, int64 [b, length], a view."""
        return self.canvas.ids[:, self._given.prompt : self.ids.shape[1]]

    def leave(self, ended: Tensor, through: int, filler: int) -> bool:
        """Takes the rows that ended, bool [b], from the canvas: behind `through` tokens their text is the filler.

        Waits for the device. Returns whether no row is left.
        """
        if not bool(ended.any()):
            return False
        self.text()[:, through:].masked_fill_(ended.unsqueeze(1), filler)
        self.finish()
        left: list[int] = self._rows[~ended].tolist()
        if left:
            self._place(left)
        return not left

    def finish(self) -> Tensor:
        """All rows, int64 [b, prompt + length]."""
        self.ids[self._rows] = self.canvas.ids[:, : self.ids.shape[1]]
        return self.ids
