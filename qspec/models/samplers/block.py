"""The sampler of block-causal models (SDAR, arXiv 2510.06303; Fast-dLLM v2, arXiv 2509.26328; LLaDA2.1, 2602.08676).

A text is cut into blocks of n = `shape.block` tokens, counted from its first one. No token sees a later block, so that
keys and values of finished blocks are exactly what a pass over the whole text would compute: whole blocks of the
prompt are computed in one pass, and kept; a block is denoised by passes over itself alone, which read what is kept.
The finished block is computed once more, to keep its own: by the first pass over the next block, or where that needs
its last state (logits are shifted) by a pass before. The i-th pass over a block commits, of the masks of each row,

    the c_i most confident ones, and
    every one whose confidence is above `threshold`, or
    those of least entropy, as long as the sum of their entropies lies below `entropy_bound`

with c_i = length / steps where that is a whole number, else n / D and one more while i < n mod D, where D is the
number of passes that a block has of `steps`. The confidence of a token is its probability, after temperature, top-k and
top-p; the mask token has none, so that a block ends. By remasking "sequential" the first masks count as the most
confident. With `part`, the masks of the first `part` tokens of a block that hold any come first (Fast-dLLM v2's small
blocks, 8 of 32 there). Where logits are shifted, the first token of a block is the likeliest behind the block before
it, by the pass that kept that: no pass of the block's own predicts it.

With `edit_threshold` a pass also replaces tokens of the block, other than a prompt's, where another one is predicted
with a confidence above it (LLaDA2.1). A row's block is then finished by a pass that changes nothing, or by
`edit_steps` passes without masks and one more; the last of these keeps its keys and values. A model that has tokens to
delete and to insert with edits by `samplers.edits` (LLaDA2.2).

The last block is denoised whole; what of it lies behind `length` tokens is dropped. Rows of a batch are moved by whole
blocks until their prompts end in the same one; the padding before them is seen by no token.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Literal, get_args

import torch
from torch import Tensor

from qspec.errors import UsageError
from qspec.models.commit import EVERY, NONE, Sure, most_confident
from qspec.models.decoder import Decoder
from qspec.models.engine import Runner
from qspec.models.likeliest import rated
from qspec.models.samplers.block_canvas import BlockCanvas, BlockShape
from qspec.models.samplers.common import (
    HEAD_VALUES,
    Around,
    Denoiser,
    SampleStep,
    check_finite,
    check_positive,
    check_seed,
    likeliest,
    not_finite,
)
from qspec.models.samplers.dream import drawn, probabilities
from qspec.models.samplers.edits import EDIT_STEPS, Rules
from qspec.models.samplers.run import Decided, Steps

BlockRemasking = Literal["low_confidence", "sequential"]


@dataclass(frozen=True)
class BlockSettings:
    """length: tokens to generate. steps: passes that commit them, where each commits its share and no more. stop: a row
    is not gone on with behind a token that ends its text: behind that block it is the end-of-text token.

    Errors: UsageError for values out of their range and for rules that exclude each other.
    """

    length: int
    steps: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int | None = None
    remasking: BlockRemasking = "low_confidence"
    threshold: float | None = None
    entropy_bound: float | None = None
    edit_threshold: float | None = None
    edit_steps: int | None = None
    part: int | None = None
    seed: int = 0
    stop: bool = False

    def __post_init__(self) -> None:
        check_positive(length=self.length, steps=self.steps)
        if self.steps > self.length:
            what = f"steps {self.steps} is more than length {self.length}"
            raise UsageError(what, hint=f"every step commits a token, so {self.length} steps are enough")
        if self.remasking not in get_args(BlockRemasking):
            hint = f"choose one of {', '.join(get_args(BlockRemasking))}"
            raise UsageError(f"unknown remasking {self.remasking!r}", hint=hint)
        check_finite(temperature=self.temperature)
        check_seed(self.seed)
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; it must lie above 0 and up to 1")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise UsageError(f"threshold is {self.threshold}; it must lie above 0 and up to 1")
        for name in ("top_k", "part"):
            if getattr(self, name) is not None:
                check_positive(**{name: getattr(self, name)})
        self._check_rules()

    def _check_rules(self) -> None:
        if self.entropy_bound is not None:
            check_finite(entropy_bound=self.entropy_bound)
        if self.threshold is not None and self.entropy_bound is not None:
            raise UsageError("threshold and entropy_bound are two rules for parallel commits", hint="give one of them")
        if self.remasking == "sequential" and (self.threshold, self.entropy_bound) != (None, None):
            what = "remasking is sequential, and parallel commits need confidences or entropies"
            raise UsageError(what, hint="leave remasking out")
        if self.edit_threshold is not None and not 0 <= self.edit_threshold <= 1:
            raise UsageError(f"edit_threshold is {self.edit_threshold}; it must lie in 0..1")
        if self.edit_steps is not None:
            if self.edit_threshold is None:
                raise UsageError("edit_steps is set, and nothing is edited", hint="give edit_threshold too")
            if self.edit_steps < 0:
                raise UsageError(f"edit_steps is {self.edit_steps}; it must be at least 0")

    def commits(self, block: int) -> Iterator[int]:
        """Masks that each pass over a block of so many tokens commits at least, without end.

        Errors: UsageError where steps divide neither the length nor the passes of a block, and for more than a block.
        """
        share, rest = divmod(self.length, self.steps)
        passes, uneven = divmod(self.steps * block, self.length)
        if rest and uneven:
            near = max(steps for steps in range(1, self.steps + 1) if self.length % steps == 0)
            what = f"length {self.length} is not a multiple of steps {self.steps}"
            raise UsageError(what, hint=f"try steps {near}: every step commits the same number of tokens")
        if share > block:
            raise UsageError(f"length / steps is {share}, more than the {block} tokens of the model's blocks")
        more = 0 if not rest else block % passes
        return (share if not rest else block // passes + (number < more) for number in count())

    def passes(self, block: int) -> int:
        """Those of `steps` that a block of so many tokens has."""
        return -(-self.steps * block // self.length)

    @property
    def exact(self) -> bool:
        """Whether a pass commits its share and no more, so that the number of passes is known."""
        return (self.threshold, self.entropy_bound, self.edit_threshold, self.part) == (None,) * 4

    @property
    def greedy(self) -> bool:
        """Whether a pass asks for the likeliest tokens and their probabilities alone."""
        return (self.temperature, self.top_p, self.top_k, self.entropy_bound) == (0, 1, None, None)

    @property
    def sure(self) -> Sure:
        """Confidences above the threshold: those from the next float32 on."""
        if self.threshold is None:
            return NONE
        return Sure(torch.nextafter(torch.tensor(self.threshold), torch.tensor(torch.inf)).item())

    @property
    def key(self) -> Hashable:
        """All that a pass depends on besides the canvas."""
        return replace(self, length=1, steps=1, seed=0, stop=False)


class Rows:
    """The rows of a batch on one canvas: ids int64 [b, t], real bool alike; t is a whole number of blocks.

    first: the place of the block in which all prompts end. begins, texts: where each row's tokens, and its new ones,
    begin; int64 [b], on the CPU.
    """

    def __init__(self, prompts: Sequence[Tensor], length: int, block: int, mask: int) -> None:
        self.first = max(len(prompt) // block for prompt in prompts) * block
        begins = [self.first - len(prompt) // block * block for prompt in prompts]
        self.begins = torch.tensor(begins)
        self.texts = torch.tensor([begin + len(prompt) for begin, prompt in zip(begins, prompts, strict=True)])
        stop = -(-(int(self.texts.max()) + length) // block) * block
        device = prompts[0].device
        self.ids = torch.full((len(prompts), stop), mask, device=device)
        self.real = torch.ones(self.ids.shape, dtype=torch.bool, device=device)
        for row, (begin, prompt) in enumerate(zip(begins, prompts, strict=True)):
            self.ids[row, begin : begin + len(prompt)] = prompt
            self.real[row, :begin] = False

    def places(self, length: int) -> Tensor:
        """int64 [b, length]: of each row's new tokens."""
        return (self.texts[:, None] + torch.arange(length)).to(self.ids.device)


def decoder_of(model: Denoiser) -> Decoder:
    """The decoder itself. Errors: UsageError for a model that keeps no keys and values."""
    while isinstance(model, Around):
        model = model.model
    if not isinstance(model, Decoder):
        raise UsageError(f"a {type(model).__name__} keeps no keys and values, which this sampler needs")
    return model


def fill(model: Decoder, runner: Runner, prompts: Sequence[Tensor], settings: BlockSettings) -> Steps:
    """Denoises the new tokens int64 [b, length] behind prompts, int64 [tokens] each, step by step.

    Errors: UsageError for a share or a part larger than a block, NumericsError where logits are not finite.
    """
    run = _Run(model, runner, prompts, settings)
    size, rows = run.block, run.rows
    if rows.first:
        run.keep(0, rows.first)
    for start in range(rows.first, rows.ids.shape[1], size):
        run.begin(start)
        masks = yield from run.commit_first()
        for number, share in enumerate(settings.commits(size)):
            if masks <= 0:
                break
            decided, more = run.step(number, share)
            yield decided
            masks = masks - share if settings.exact else int(more) * size
        if start + size < rows.ids.shape[1]:
            run.keep_block()
        if run.leave():
            break
    return run.text()


class _Run:
    """One batch on its way: those of its rows that are not finished lie on a canvas."""

    def __init__(self, model: Decoder, runner: Runner, prompts: Sequence[Tensor], settings: BlockSettings) -> None:
        assert model.shape.block is not None
        self.model, self.settings, self.block = model, settings, model.shape.block
        settings.commits(self.block)
        if settings.part is not None and settings.part > self.block:
            raise UsageError(f"part is {settings.part}, more than the {self.block} tokens of the model's blocks")
        self.edited = bool(model.shape.edit_tokens) and settings.edit_threshold is not None
        if self.edited and not (settings.greedy and settings.part is None and settings.remasking == "low_confidence"):
            what = f"the edits of a {model.family.name} model take the likeliest tokens, the most confident first"
            raise UsageError(what, hint="with edit_threshold, give threshold and edit_steps alone")
        self._runner, self._key = runner, settings.key
        self.rows = Rows(prompts, settings.length, self.block, model.shape.mask_token)
        self._index = self._start = self._before = 0  # _before: tokens that the next pass computes before its block
        self.canvas = self._place(list(range(len(prompts))))
        self.canvas.start()

    def _place(self, rows: list[int]) -> BlockCanvas:
        length = self._runner.bucket(self.rows.ids.shape[1])
        canvas = self._runner.canvas(BlockShape(len(rows), length))
        self._runner.keep(canvas)
        canvas.place(self.rows.ids[rows], self.rows.begins[rows], rows, self.settings.seed)
        canvas.texts.copy_(self.rows.texts[rows])
        self._rows = rows
        return canvas

    def keep(self, first: int, stop: int) -> None:
        """The pass over whole blocks without masks."""
        canvas = self.canvas
        canvas.window(first, stop)
        tokens = min(self._runner.bucket(stop), canvas.shape.length) if stop - first > self.block else self.block
        seen = self._seen(stop)
        self._runner.run(canvas, ("keep", tokens, seen), partial(_keep, self.model, canvas, tokens, seen))

    def _seen(self, stop: int) -> int:
        """Keys that a pass reads, at least those before `stop`."""
        return min(self._runner.bucket(stop), self.canvas.shape.length)

    def keep_block(self) -> None:
        """Has the finished block kept, by a pass now or by the next block's first; one that was edited is."""
        if self.model.shape.shift:
            self.keep(self._start, self._start + self.block)
        elif self.settings.edit_threshold is None:
            self._before = self.block

    def begin(self, start: int) -> None:
        """The passes from here on denoise the block there."""
        self._start = start
        self.canvas.window(start, start + self.block)
        self.canvas.edits.zero_()
        self.canvas.done.copy_(self.canvas.ended)
        if self.edited:
            self.canvas.begin_edits(self.model.shape.mask_token)

    def commit_first(self) -> Generator[Decided, None, int]:
        """Of a shifted model, the token behind what is kept; then the masks of a row that are left, at most."""
        rows, start = self.rows, self._start
        prompts = (rows.texts[self._rows] - start).clamp(min=0)
        behind = (rows.begins[self._rows] < start) & (prompts == 0)
        if not self.model.shape.shift or not bool(behind.any()):
            return self.block - int(prompts.min())
        parts = self._runner.run(self.canvas, "first", partial(_first, self.model, self.canvas))
        yield replace(self._decided(parts), passes=0)
        return self.block - int((prompts + behind).min())

    def step(self, number: int, share: int) -> tuple[Decided, Tensor]:
        """A pass over the block, and whether another one is needed, bool []. number: which its random numbers follow
        from, whatever other rows need."""
        canvas, seen = self.canvas, self._seen(self._start + self.block)
        canvas.number.fill_(self._start - self.rows.first + number)
        canvas.count.fill_(self.block if self.edited and number >= self.settings.passes(self.block) else share)
        before, self._before = self._before, 0
        compute = partial(_step, self.model, self.settings, canvas, seen, before)
        *parts, more = self._runner.run(canvas, (self._key, before, seen), compute)
        decided = self._decided(parts)
        self._index += 1
        return decided, more

    def _decided(self, parts: Sequence[Tensor]) -> Decided:
        """parts: what was chosen, the tokens and their confidences [b, n], from where the block begins."""
        length, start, rows = self.settings.length, self._start, self._rows
        index = min(self._index, self.settings.steps - 1)

        def whole() -> SampleStep:
            found = []
            for part in parts:
                canvas = part.new_zeros(self.rows.ids.shape)
                canvas[rows, start : start + part.shape[1]] = part
                found.append(canvas.gather(1, self.rows.places(length)))
            return SampleStep(index, *found)

        return Decided(index, min(length, start + parts[0].shape[1] - int(self.rows.texts[rows].min())), whole)

    def leave(self) -> bool:
        """Fills the texts that ended: behind this block they are the end-of-text token, and are not gone on with. Once
        they are half of the canvas, their rows leave it; fewer would have passes of their own captured, for little.

        Returns whether no row is left. Errors: NumericsError once the logits were not finite.
        """
        canvas, shape, stop = self.canvas, self.model.shape, self._start + self.block
        if self.settings.stop:
            ends = torch.tensor(shape.ends, device=canvas.ids.device)
            behind = torch.arange(stop, device=ends.device) >= canvas.texts.unsqueeze(1)
            torch.any(torch.isin(canvas.ids[:, :stop], ends) & behind, 1, out=canvas.ended)
            canvas.ids[:, stop:].masked_fill_(canvas.ended.unsqueeze(1), shape.eos_token)
        finite, *ended = torch.cat((canvas.finite.view(1), canvas.ended)).tolist()
        if not finite:
            raise not_finite(self.model, canvas.dtype)
        left = [row for row, gone in enumerate(ended) if not gone]
        if left and 2 * len(left) <= len(ended):
            self._store()
            self.canvas = self._place([self._rows[row] for row in left])
            self.canvas.take(canvas, torch.tensor(left, device=canvas.ids.device), stop)
        return not left

    def _store(self) -> None:
        self.rows.ids[self._rows] = self.canvas.ids[:, : self.rows.ids.shape[1]]

    def text(self) -> Tensor:
        self._store()
        return self.rows.ids.gather(1, self.rows.places(self.settings.length))


def _keep(model: Decoder, canvas: BlockCanvas, tokens: int, seen: int) -> tuple[Tensor, ...]:
    """The pass over whole blocks without masks, and masks or padding behind them, whose keys are written again."""
    states = canvas.states(model, tokens, seen)
    last = (canvas.stop - canvas.first - 1).view(1)
    canvas.state.copy_(states.index_select(1, last).squeeze(1))
    return ()


def _first(model: Decoder, canvas: BlockCanvas) -> tuple[Tensor, ...]:
    """What is chosen, the tokens and their probabilities [b, 1] behind what is kept."""
    tokens, confidence = likeliest(model, canvas.state.unsqueeze(1), "probability", canvas.finite, canvas.barred)
    order = confidence.masked_fill(canvas.begin().unsqueeze(1), -torch.inf)
    chosen, _ = canvas.commit(model, tokens, order, EVERY)
    return chosen, tokens, confidence


def _step(
    model: Decoder, settings: BlockSettings, canvas: BlockCanvas, seen: int, before: int = 0
) -> tuple[Tensor, ...]:
    """What is chosen, the tokens and their confidences [b, n], and whether another pass is needed."""
    x = canvas.states(model, canvas.block, seen, before)[:, before:]
    if model.shape.shift:
        first = torch.where(canvas.begin().unsqueeze(1), x[:, 0], canvas.state)
        x = torch.cat((first.unsqueeze(1), x[:, :-1]), dim=1)
    if settings.edit_threshold is not None and canvas.edited is not None:
        return _written(model, settings, canvas, x)
    tokens, confidence, entropy = _predicted(model, settings, canvas, x)
    order, sure = _ordered(model, settings, canvas, confidence, entropy)
    if settings.edit_threshold is None:
        chosen, masks = canvas.commit(model, tokens, order, sure)
        return chosen, tokens, confidence, masks.any() & canvas.finite
    own = canvas.own()
    masked = own == model.shape.mask_token
    chosen = most_confident(order.masked_fill(~masked, -torch.inf), canvas.count, sure)
    chosen = _edited(settings, canvas, masked, chosen, (tokens != own) & (confidence > settings.edit_threshold))
    canvas.put(torch.where(chosen, tokens, own))
    return chosen, tokens, confidence, ~canvas.done.all() & canvas.finite


def _written(model: Decoder, settings: BlockSettings, canvas: BlockCanvas, x: Tensor) -> tuple[Tensor, ...]:
    """The same where tokens delete and insert, of x [b, n, d]: chosen is what is another token now, or a mask again."""
    assert canvas.edited is not None
    assert settings.edit_threshold is not None
    mask, own, done = model.shape.mask_token, canvas.own(), canvas.done
    delete, insert = model.shape.edit_tokens
    steps = EDIT_STEPS if settings.edit_steps is None else settings.edit_steps
    rules = Rules(mask, delete, insert, settings.threshold, settings.edit_threshold, steps)
    found = canvas.edited.found(model, x, canvas.finite)
    after = canvas.edited.step(own, canvas.prompts() | done.unsqueeze(1), found, canvas.count, rules)
    canvas.put(after)
    masks = after == mask
    done |= (after == own).all(1) & ~masks.any(1)
    return after != own, after, found.confidence, ~done.all() & canvas.finite


def _predicted(
    model: Decoder, settings: BlockSettings, canvas: BlockCanvas, x: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens int64, their probabilities and, unless greedy, entropies, float32; [b, n] each, of x [b, n, d]."""
    found = []
    size = max(1, HEAD_VALUES // (model.shape.vocab * len(x)))
    for start in range(0, canvas.block, size):
        some = slice(start, start + size)
        if settings.greedy:
            tokens, confidence = likeliest(model, x[:, some], "probability", canvas.finite, canvas.barred)
            found.append((tokens, confidence, confidence))
            continue
        p = _probabilities(rated(model.finish(x[:, some]), canvas.barred, canvas.finite), settings)
        tokens = drawn(p, canvas.uniform()[:, some]) if settings.temperature > 0 else p.argmax(-1)
        found.append((tokens, p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), torch.special.entr(p).sum(-1)))
    if len(found) == 1:
        return found[0]
    tokens, confidence, entropy = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return tokens, confidence, entropy


def _probabilities(logits: Tensor, settings: BlockSettings) -> Tensor:
    """p [..., vocab] of logits alike: temperature, then top-k, then top-p of what is left; Dream's is the other way."""
    p = probabilities(logits, settings.temperature, 1.0, settings.top_k)
    return p if settings.top_p == 1 else probabilities(p.log(), 0.0, settings.top_p, None)


def _ordered(
    model: Decoder, settings: BlockSettings, canvas: BlockCanvas, confidence: Tensor, entropy: Tensor
) -> tuple[Tensor, Sure]:
    """What decides which masks a pass commits: numbers [b, n], -inf where a mask is to stay."""
    if settings.remasking == "sequential":
        confidence = -torch.arange(canvas.block, device=canvas.ids.device).expand(confidence.shape).float()
    if (settings.part, settings.entropy_bound) == (None, None):
        return confidence, settings.sure
    masked = _first_part(settings, canvas.own() == model.shape.mask_token)
    if settings.entropy_bound is None:
        return confidence.masked_fill(~masked, -torch.inf), settings.sure
    left = -entropy.masked_fill(~masked, torch.inf)
    values, positions = left.sort(dim=-1, descending=True, stable=True)
    below = values.neg().cumsum(-1) < settings.entropy_bound
    chosen = most_confident(left, canvas.count) | torch.zeros_like(masked).scatter(-1, positions, below)
    return torch.where(chosen, 0.0, -torch.inf), EVERY


def _edited(settings: BlockSettings, canvas: BlockCanvas, masked: Tensor, chosen: Tensor, changes: Tensor) -> Tensor:
    """bool [b, n]: the masks that were chosen, and the tokens that change; none of a row that is finished."""
    full = ~masked.any(1)
    canvas.edits += full
    most = EDIT_STEPS if settings.edit_steps is None else settings.edit_steps
    canvas.done |= full & (canvas.edits > most)
    chosen = (chosen | changes & ~masked & ~canvas.prompts()) & ~canvas.done.unsqueeze(1)
    canvas.done |= ~chosen.any(1)
    return chosen


def _first_part(settings: BlockSettings, masked: Tensor) -> Tensor:
    """Of masks bool [b, n] those of each row's first part with any."""
    if settings.part is None:
        return masked
    part = torch.arange(masked.shape[1], device=masked.device) // settings.part
    first = torch.where(masked, part, masked.shape[1]).amin(1, keepdim=True)
    return masked & (part == first)
