"""What is observed of one block on the calibration data: the inputs of its linears, their statistics and Hessians."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from qspec.calibrate.stream import CalibrationBatch, Stream
from qspec.models.decoder import AttentionContext, DecoderBlock
from qspec.passes.linear import Linear, LinearView
from qspec.passes.statistics import Observer, Statistics, Tokens, weighted_product
from qspec.precision import exact_products, fast_products
from qspec.transforms import InputTransform

Positions = Literal["all", "masked", "visible"]
Watchers = Mapping[str, Callable[[Tensor], None]]


@dataclass(frozen=True)
class Site:
    """An input and every linear that reads it. name: "attention.input", without the block."""

    name: str
    linears: tuple[Linear, ...]

    def by_transform(self, uses: Sequence[Linear]) -> list[list[Linear]]:
        """The selected linears, grouped by the online transform that they share."""
        groups: dict[int, list[Linear]] = {}
        for linear in self.linears:
            if linear in uses:
                groups.setdefault(id(linear.transform), []).append(linear)
        return list(groups.values())


def sites_of(linears: Iterable[Linear]) -> list[Site]:
    """The sites of a block's linears, in forward order."""
    groups: dict[str, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(linear.entry.site.split(".", 1)[1], []).append(linear)
    return [Site(name, tuple(group)) for name, group in groups.items()]


@dataclass(frozen=True)
class SiteInput:
    """One batch of what a site sees: x [b, t, in] as the model computes it; weight [b, t] of its tokens."""

    x: Tensor
    context: AttentionContext
    weight: Tensor

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """X float32 [tokens, in] and weight [tokens], without the tokens of weight 0."""
        keep = self.weight > 0
        return self.x[keep].float(), self.weight[keep]


class Observed:
    """The calibration data in one block, whose linears and norms are as the passes so far have left them.

    in_basis: whether the block reads and writes the stream's rotated basis. generator: random numbers by name.
    """

    def __init__(
        self,
        module: DecoderBlock,
        linears: Mapping[str, Linear],
        stream: Stream,
        generator: Callable[[str], torch.Generator],
    ) -> None:
        self.module = module
        self.linears = linears
        self.sites = sites_of(linears.values())
        self.stream = stream
        self.generator = generator
        self.in_basis = stream.basis is None
        self._statistics: dict[str, Statistics] = {}

    def additions(self, watchers: Watchers | None = None) -> tuple[Tensor, Tensor]:
        """What attention and MLP add to the residual stream on the first calibration batch, in the checkpoint's basis.

        Apart from the stream, which can be so large that nothing shows beside it. All of it in true float32, whatever
        the stream's dtype and the caller's precision of products, so that rounding neither hides what a pass did nor
        passes for it. watchers: by part, told what a linear reads, [tokens, in].
        """
        x, batch = next(self.stream.inputs(self.in_basis))
        linears = self._views(watchers or {}, rounding=True)
        with torch.no_grad(), exact_products():
            x = x.float()
            mixed = self.module.attend(self.module.part("attention.norm")(x), batch.context, linears=linears)
            fed = self.module.feed_forward(self.module.part("mlp.norm")(x + mixed), linears=linears)
            back = self.stream.basis if self.in_basis else None
            return (mixed, fed) if back is None else (mixed @ back.T, fed @ back.T)

    def inputs(self, sites: Collection[str]) -> Iterator[tuple[dict[str, Tensor], Tokens]]:
        """Runs the calibration data through the block; for every batch, what each site sees: x [tokens, in].

        Tokens of weight 0 are left out. A batch goes no further than the last site that is asked for.
        """
        for x, batch in self.stream.inputs(self.in_basis):
            keep = batch.weight.reshape(-1) > 0
            if bool(keep.any()):
                seen = {name: value[keep] for name, value in self._seen(sites, x, batch).items()}
                yield seen, Tokens(batch.masked.reshape(-1)[keep], batch.weight.reshape(-1)[keep])

    def paired_inputs(self, site: str) -> Iterator[tuple[Tensor, Tensor, Tokens]]:
        """For every batch, what a site sees, and what it would see had nothing been rounded: x, exact [tokens, in]."""
        rounded, exact = self.stream.inputs(self.in_basis), self.stream.exact_inputs(self.in_basis)
        for (x, batch), (whole, _) in zip(rounded, exact, strict=True):
            keep = batch.weight.reshape(-1) > 0
            if bool(keep.any()):
                seen = self._seen({site}, x, batch)[site]
                unrounded = self._seen({site}, whole, batch, rounding=False)[site]
                tokens = Tokens(batch.masked.reshape(-1)[keep], batch.weight.reshape(-1)[keep])
                yield seen[keep], unrounded[keep], tokens

    def _seen(
        self, sites: Collection[str], x: Tensor, batch: CalibrationBatch, *, rounding: bool = True
    ) -> dict[str, Tensor]:
        """What each of these sites reads, [tokens, in], in one forward pass, with or without the rounding so far."""
        seen: dict[str, Tensor] = {}
        watched = [site for site in self.sites if site.name in sites]

        def watch(name: str) -> Callable[[Tensor], None]:
            def keep(value: Tensor) -> None:
                seen[name] = value
                if len(seen) == len(watched):
                    raise _Reached

            return keep

        watchers = {site.linears[0].entry.role.part: watch(site.name) for site in watched}
        with torch.no_grad(), fast_products(), suppress(_Reached):
            self.module(x, batch.context, linears=self._views(watchers, rounding=rounding))
        return seen

    def _views(self, watchers: Watchers, *, rounding: bool) -> Callable[[str], LinearView]:
        """The block's linears for one forward pass."""
        views = {
            part: LinearView(linear, rounding=rounding, watcher=watchers.get(part))
            for part, linear in self.linears.items()
        }
        return views.__getitem__

    def statistics(self, site: str) -> Statistics:
        """Peaks, means and sampled rows of a site's inputs; one pass over the calibration data serves all sites."""
        if site not in self._statistics:
            names = [s.name for s in self.sites]
            batches = len(self.stream.batches)
            observers = {name: Observer(batches, self.generator(f"sample/{name}")) for name in names}
            for seen, tokens in self.inputs(names):
                for name, x in seen.items():
                    observers[name].observe(x, tokens)
            self._statistics = {name: observer.statistics() for name, observer in observers.items()}
        return self._statistics[site]

    def hessian(self, site: str, transform: InputTransform | None, positions: Positions = "all") -> Tensor:
        """H = 2 X^T diag(c) X / sum(c) of the site's inputs after the transform, float32 [in, in].

        c: the tokens' weights. positions: all, or the masked or the visible ones alone; zeros where none are.
        """
        total: Tensor | None = None
        count = torch.zeros((), dtype=torch.float64)
        for seen, tokens in self.inputs({site}):
            x = seen[site].float() if transform is None else transform.apply(seen[site])
            weight = tokens.weight
            if positions != "all":
                weight = weight * (tokens.masked if positions == "masked" else ~tokens.masked)
            count += weight.sum(dtype=torch.float64).cpu()
            product = weighted_product(x, x, weight)
            total = product if total is None else total.add_(product)
        assert total is not None
        return total.mul_(2.0 / float(count)) if count else total

    def sampled(self, site: str, tokens: int) -> list[SiteInput]:
        """What a site sees in whole batches that are spread evenly over those with a token of weight above 0.

        As many batches as hold `tokens` tokens; all of them where there are fewer.
        """
        usable = [i for i, batch in enumerate(self.stream.batches) if bool((batch.weight > 0).any())]
        wanted = min(len(usable), -(-tokens // self.stream.batches[0].weight.numel()))
        chosen = {usable[i * len(usable) // wanted] for i in range(wanted)}
        inputs = []
        for i, (x, batch) in enumerate(self.stream.inputs(self.in_basis)):
            if i in chosen:
                seen = self._seen({site}, x, batch)[site]
                inputs.append(SiteInput(seen.reshape(*batch.weight.shape, -1), batch.context, batch.weight))
        return inputs

    def consume(self, site: str, given: SiteInput) -> Tensor:
        """[b, t, out]: what the module computes that reads the site's input: attention, MLP, or the one linear."""
        with torch.no_grad(), fast_products():
            if site == "attention.input":
                return self.module.attend(given.x, given.context)
            if site == "mlp.input":
                return self.module.feed_forward(given.x)
            (linear,) = self.site(site).linears
            return cast(Tensor, linear(given.x))

    def site(self, name: str) -> Site:
        return next(site for site in self.sites if site.name == name)

    def scale(self, site: str, factor: Tensor) -> None:
        """A site's inputs were multiplied by factor [in]."""
        if site in self._statistics:
            self._statistics[site] = self._statistics[site].scaled(factor)

    def forget(self) -> None:
        """Inputs further on have changed: weights were rounded, or rotated."""
        self._statistics.clear()


class _Reached(Exception):  # noqa: N818 - not an error: the last watched site was seen
    """Ends a forward pass that has shown everything that is watched."""
