"""What is observed of one block on the calibration data: the inputs of its linears, their statistics and Hessians."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from qspec.calibrate.stream import CalibrationBatch, Stream
from qspec.models.decoder_block import DecoderBlock
from qspec.models.inputs import value_of
from qspec.models.operations import AttentionContext
from qspec.models.routing import Routing
from qspec.passes.linear import Input, Linear, LinearView
from qspec.passes.parameters import FEW_TOKENS
from qspec.passes.statistics import Observer, Statistics, Tokens, weighted_product
from qspec.plan.plan import HESSIAN_BYTES
from qspec.precision import exact_products, fast_products
from qspec.transforms import InputTransform

Positions = Literal["all", "masked", "visible"]
Watchers = Mapping[str, Callable[[Tensor], None]]


@dataclass(frozen=True)
class Site:
    """An input and every linear that reads it. name: "attention.input", without the block."""

    name: str
    linears: tuple[Linear, ...]

    @property
    def stage(self) -> str:
        """`mlp.experts.gated`: its name without an expert's number. Of one stage no site's linears change another's
        input."""
        expert = self.linears[0].entry.role.expert
        return self.name.replace(f"[{expert}]", "")

    @property
    def input(self) -> Input:
        """What its first linear reads: all tokens, or those of the expert that it is within."""
        return Input(self.name, None if self.name.endswith(".input") else self.linears[0].entry.role.expert)

    def by_transform(self, uses: Collection[Linear]) -> list[list[Linear]]:
        """The selected linears, grouped by the expert whose tokens they see and the online transform that they
        share."""
        groups: dict[tuple[int | None, int], list[Linear]] = {}
        for linear in self.linears:
            if linear in uses:
                groups.setdefault((linear.entry.role.expert, id(linear.transform)), []).append(linear)
        return list(groups.values())


def sites_of(linears: Iterable[Linear]) -> list[Site]:
    """The sites of a block's linears, in forward order."""
    groups: dict[str, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(linear.entry.site.split(".", 1)[1], []).append(linear)
    return [Site(name, tuple(group)) for name, group in groups.items()]


@dataclass(frozen=True)
class SiteInput:
    """One batch of what a site sees: x [b, t, in] as the model computes it; weight [b, t] of its tokens. Of a site
    within an expert [tokens, in] and [tokens]. routing: of its tokens, where they go to experts and x does not tell."""

    x: Tensor
    context: AttentionContext
    weight: Tensor
    routing: Routing | None = None

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """X float32 [tokens, in] and weight [tokens], without the tokens of weight 0."""
        keep = self.weight > 0
        return self.x[keep].float(), self.weight[keep]


class Observed:
    """The calibration data in one block, whose linears and norms are as the passes so far have left them.

    in_basis: whether the block reads and writes the stream's rotated basis. generator: random numbers by name.
    routed: calibration tokens of weight above 0 that went to each expert when they were last counted.

    What an expert's linears are calibrated on are the tokens that are routed to it, each with its weight c times the
    square of the router's w: the error that the expert's rounding makes of the block's output is
    sum_t c_t w_t^2 ||dy_t||^2. One that gets fewer than `FEW_TOKENS` sees every token of the layer, as if all were
    routed to it, with their weights c: other text may use it.
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
        beside = module.mixture is not None and module.mixture.beside
        self.mixed = "mlp.experts.input" if beside else "mlp.input"  # the site from which tokens go to experts
        self.router = "mlp.router.input" if beside else self.mixed  # and what decides to which
        self.routes = {self.mixed, self.router}
        self.routed: tuple[int, ...] = ()
        self._statistics: dict[str, Statistics] = {}

    def additions(self, watchers: Watchers | None = None, like: tuple[Tensor, ...] | None = None) -> tuple[Tensor, ...]:
        """What attention and MLP add to the residual stream on the first calibration batch, in the checkpoint's basis;
        and a router's logits, where there is one.

        Apart from the stream, which can be so large that nothing shows beside it. All of it in true float32, whatever
        the stream's dtype and the caller's precision of products, so that rounding neither hides what a pass did nor
        passes for it. watchers: by part, told what a linear reads, [tokens, in]; an expert's without a token, all that
        there are. like: what this returned before, whose experts are taken: where two are close to equal for a token,
        rounding may choose the other one.
        """
        x, batch = next(self.stream.inputs(self.in_basis))
        linears = self._views(watchers or {}, rounding=True)
        with torch.no_grad(), exact_products():
            x = x.float()
            mixed = self.module.attend(self.module.part("attention.norm")(x), batch.context, linears=linears)
            h = self.module.normed("mlp.norm", x + mixed)
            logits: tuple[Tensor, ...] = ()
            chosen = None
            if self.module.mixture is not None:
                rows, read = self.module.routed(h)
                logits = (self.module.logits(read, linears),)
                chosen = self.module.routing((like or logits)[-1], pools=batch.context.pools).experts
                if watchers:
                    self._show_idle(rows, chosen, linears)
            fed = self.module.feed_forward(h, linears=linears, chosen=chosen, pools=batch.context.pools)
            back = self.stream.basis if self.in_basis else None
            return (mixed, fed, *logits) if back is None else (mixed @ back.T, fed @ back.T, *logits)

    def _show_idle(self, rows: Tensor, chosen: Tensor, linears: Callable[[str], LinearView]) -> None:
        """Runs all rows [n, d] through the experts that no token goes to."""
        assert self.module.mixture is not None
        for expert in sorted(set(range(self.module.mixture.count)) - set(chosen.flatten().tolist())):
            name = f"mlp.experts[{expert}]"
            linears(f"{name}.down")(self.module.hidden(name, rows, linears))

    def inputs(self, sites: Collection[str], *, routed: bool = False) -> Iterator[tuple[dict[str, Tensor], Tokens]]:
        """Runs the calibration data through the block; for every batch, what each site sees: x [tokens, in]. For sites
        that see all tokens: `read` serves others. routed: whether to tell of each token where it goes; what its router
        reads is among the sites then.

        Tokens of weight 0 are left out. A batch goes no further than the last site that is asked for.
        """
        for x, batch in self.stream.inputs(self.in_basis):
            keep = batch.weight.reshape(-1) > 0
            if bool(keep.any()):
                seen = self._seen(sites, x, batch)
                routing = self._routing(seen[self.router], batch.context, keep) if routed else None
                tokens = Tokens(batch.masked.reshape(-1)[keep], batch.weight.reshape(-1)[keep], routing)
                yield {name: value[keep] for name, value in seen.items()}, tokens

    def paired_inputs(self, site: str, expert: int | None = None) -> Iterator[tuple[Tensor, Tensor, Tokens]]:
        """For every batch, what a site sees, and what it would see had nothing been rounded: x, exact [tokens, in].

        expert: at its tokens alone.
        """
        wanted, watched = Input(site, expert), {site} if expert is None else self.routes
        few = self._few() if expert is not None else ()
        rounded, exact = self.stream.inputs(self.in_basis), self.stream.exact_inputs(self.in_basis)
        for (x, batch), (whole, _) in zip(rounded, exact, strict=True):
            keep = batch.weight.reshape(-1) > 0
            if bool(keep.any()):
                both = self._seen(watched, x, batch), self._seen(watched, whole, batch, rounding=False)
                place = site if expert is None else self.mixed
                seen, unrounded = (found[place][keep] for found in both)
                routing = self._routing(both[0][self.router], batch.context, keep) if expert is not None else None
                tokens = Tokens(batch.masked.reshape(-1)[keep], batch.weight.reshape(-1)[keep], routing)
                if expert is not None:
                    rows, tokens = self._routed(expert, tokens, few)
                    seen = self._expert_input(wanted, seen[rows])
                    unrounded = self._expert_input(wanted, unrounded[rows], rounding=False)
                if seen.shape[0]:
                    yield seen, unrounded, tokens

    def read(self, wanted: Collection[Input]) -> Iterator[dict[Input, tuple[Tensor, Tokens]]]:
        """For every batch, what these see: x [tokens, in] and its tokens; nothing of an expert without any."""
        plain = {one.site for one in wanted if one.expert is None}
        mixed = [one for one in wanted if one.expert is not None]
        few = self._few() if mixed else ()
        for seen, tokens in self.inputs({*plain, *self.routes} if mixed else plain, routed=bool(mixed)):
            found = {Input(site): (seen[site], tokens) for site in plain}
            if mixed:
                found |= self._mixed(mixed, seen[self.mixed], tokens, few)
            yield found

    def _mixed(
        self, wanted: Iterable[Input], h: Tensor, tokens: Tokens, few: Collection[int]
    ) -> dict[Input, tuple[Tensor, Tokens]]:
        """What experts' linears see of h [tokens, d]."""
        found = {}
        for one in wanted:
            assert one.expert is not None
            rows, own = self._routed(one.expert, tokens, few)
            if own.weight.numel():
                found[one] = self._expert_input(one, h[rows]), own
        return found

    def _routing(self, h: Tensor, context: AttentionContext, keep: Tensor | slice = slice(None)) -> Routing:
        """Of what the router reads, [tokens, d] of a whole batch: of those that are kept."""
        with torch.no_grad(), fast_products():
            logits = self.module.logits(h, self._views({}, rounding=True))
            return Routing(*(part[keep] for part in self.module.routing(logits, pools=context.pools)))

    def _routed(self, expert: int, tokens: Tokens, few: Collection[int]) -> tuple[Tensor | slice, Tokens]:
        """The rows that an expert's linears see, and their tokens."""
        if expert in few:
            return slice(None), tokens
        assert tokens.routing is not None
        rows, place = (tokens.routing.experts == expert).nonzero(as_tuple=True)
        weight = tokens.weight[rows] * tokens.routing.weights[rows, place].float().square()
        return rows, Tokens(tokens.masked[rows], weight)

    def _expert_input(self, wanted: Input, h: Tensor, *, rounding: bool = True) -> Tensor:
        """Of an expert's linear, from h [tokens, d]: that itself for gate and up."""
        if wanted.site == self.mixed:
            return h
        with torch.no_grad(), fast_products():
            name = wanted.site.removesuffix(".gated")
            return value_of(self.module.hidden(name, h, self._views({}, rounding=rounding)))

    @property
    def few(self) -> dict[int, int]:
        """Experts that saw every token of the layer, and how many were their own."""
        return {expert: count for expert, count in enumerate(self.routed) if count < FEW_TOKENS}

    def _few(self) -> frozenset[int]:
        """Those, counted anew."""
        assert self.module.mixture is not None
        counts = torch.zeros(self.module.mixture.count, dtype=torch.int64)
        for _, tokens in self.inputs({self.router}, routed=True):
            assert tokens.routing is not None
            counts += tokens.routing.experts.flatten().bincount(minlength=counts.numel()).cpu()
        self.routed = tuple(counts.tolist())
        return frozenset(self.few)

    def _seen(
        self, sites: Collection[str], x: Tensor, batch: CalibrationBatch, *, rounding: bool = True
    ) -> dict[str, Tensor]:
        """What each of these sites reads, [tokens, in], in one forward pass, with or without the rounding so far."""
        seen: dict[str, Tensor] = {}
        beside = self.routes & set(sites) if self.router != self.mixed else set()  # no linear reads the whole of these
        watched = [site for site in self.sites if site.name in sites and site.name not in beside]

        def watch(name: str) -> Callable[[Tensor], None]:
            def keep(value: Tensor) -> None:
                seen[name] = value
                if len(seen) == len(watched) + len(beside):
                    raise _Reached

            return keep

        watchers = {site.linears[0].entry.role.local: watch(site.name) for site in watched}
        with torch.no_grad(), fast_products(), suppress(_Reached):
            views = self._views(watchers, rounding=rounding)
            x = self.module.attended(x, batch.context, views)
            if beside:
                routed = self.module.routed(self.module.normed("mlp.norm", x))
                own = dict(zip((self.mixed, self.router), routed, strict=True))
                seen |= {name: own[name] for name in beside}
            if watched or not beside:
                self.module.fed(x, views, batch.context.pools)
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
            batches = len(self.stream.batches)
            observers = {s.input: Observer(batches, self.generator(f"sample/{s.name}")) for s in self.sites}
            for seen in self.read(observers):
                for one, (x, tokens) in seen.items():
                    observers[one].observe(x, tokens)
            self._statistics = {one.site: observer.statistics() for one, observer in observers.items()}
        return self._statistics[site]

    def hessian(self, site: str, transform: InputTransform | None, positions: Positions = "all") -> Tensor:
        """H = 2 X^T diag(c) X / sum(c) of the site's inputs after the transform, float32 [in, in].

        c: the tokens' weights. positions: all, or the masked or the visible ones alone; zeros where none are.
        """
        (found,) = self._hessians([(Input(site), transform)], positions)
        return found

    def hessians(self, uses: Collection[Linear]) -> Iterator[tuple[list[Linear], Tensor]]:
        """The selected linears in forward order, those together that read one prepared input, and its Hessian, whose
        weights c are an expert's (`Observed`). Inputs are as linears before leave them: rounded, once they are.

        Those of one stage are summed up together, as many as `HESSIAN_BYTES` hold.
        """
        uses = set(uses)
        stages: dict[str, list[list[Linear]]] = {}
        for site in self.sites:
            stages.setdefault(site.stage, []).extend(site.by_transform(uses))
        for groups in stages.values():
            largest = max((group[0].entry.in_features for group in groups), default=1)
            many = max(1, HESSIAN_BYTES // (4 * largest**2))
            for start in range(0, len(groups), many):
                some = groups[start : start + many]
                yield from zip(some, self._hessians([(g[0].input, g[0].transform) for g in some]), strict=True)

    def _hessians(
        self, wanted: Sequence[tuple[Input, InputTransform | None]], positions: Positions = "all"
    ) -> list[Tensor]:
        totals: list[Tensor | None] = [None] * len(wanted)
        counts = torch.zeros(len(wanted), dtype=torch.float64)
        for seen in self.read({one for one, _ in wanted}):
            for place, (one, transform) in enumerate(wanted):
                if one not in seen:
                    continue
                value, tokens = seen[one]
                x = value.float() if transform is None else transform.apply(value)
                weight = tokens.weight
                if positions != "all":
                    weight = weight * (tokens.masked if positions == "masked" else ~tokens.masked)
                counts[place] += weight.sum(dtype=torch.float64).cpu()
                product, total = weighted_product(x, x, weight), totals[place]
                totals[place] = product if total is None else total.add_(product)
        found = []
        for total, count in zip(totals, counts.tolist(), strict=True):
            assert total is not None  # an expert has tokens: the layer's, where it has few of its own
            found.append(total.mul_(2.0 / count) if count else total)
        return found

    def sampled(self, site: str, tokens: int) -> list[SiteInput]:
        """What a site sees in whole batches that are spread evenly over those with a token of weight above 0.

        As many batches as hold `tokens` tokens; all of them where there are fewer.
        """
        usable = [i for i, batch in enumerate(self.stream.batches) if bool((batch.weight > 0).any())]
        wanted = min(len(usable), -(-tokens // self.stream.batches[0].weight.numel()))
        chosen = {usable[i * len(usable) // wanted] for i in range(wanted)}
        own = self.site(site).input
        if own.expert is not None:
            return [
                SiteInput(x, self.stream.batches[i].context, of.weight)
                for i, seen in zip(usable, self.read({own}), strict=True)
                for x, of in seen.values()
                if i in chosen
            ]
        inputs = []
        watched = self.routes if site == self.mixed else {site}
        for i, (x, batch) in enumerate(self.stream.inputs(self.in_basis)):
            if i in chosen:
                seen = self._seen(watched, x, batch)
                routing = None if len(seen) == 1 else self._routing(seen[self.router], batch.context)
                value = seen[site].reshape(*batch.weight.shape, -1)
                inputs.append(SiteInput(value, batch.context, batch.weight, routing))
        return inputs

    def consume(self, site: str, given: SiteInput) -> Tensor:
        """[b, t, out]: what the module computes that reads the site's input: attention, MLP, or the one linear."""
        with torch.no_grad(), fast_products():
            if site == "attention.input":
                return self.module.attend(given.x, given.context)
            if given.routing is not None:
                rows = given.x.reshape(-1, given.x.shape[-1])
                return self.module.behind_experts(self.module.mixed(rows, given.routing)).view(given.x.shape)
            if site == "mlp.input":
                beside = self.module.mixture is not None and self.module.mixture.beside
                pools = given.context.pools
                return self.module.dense(given.x) if beside else self.module.feed_forward(given.x, pools=pools)
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
