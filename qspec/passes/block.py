"""What a pass rewrites: the linears of one block, their inputs on the calibration data, the sites that they share."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn

from qspec import numerics
from qspec.calibrate.stream import Batch, Stream
from qspec.formats import Scheme
from qspec.models.decoder import AttentionContext, DecoderBlock, weight_and_bias
from qspec.models.family import DecoderShape, ModuleEntry
from qspec.passes.linear import Linear
from qspec.passes.statistics import Gather, Statistics, Tokens, weighted_product
from qspec.precision import exact_products, fast_products
from qspec.transforms import InputTransform, block_rotate

# What produces the input of a site, and so can absorb its scale: a norm's gain or the rows of a linear.
PRODUCERS = {
    "attention.input": "attention.norm",
    "attention.mixed": "attention.v",
    "mlp.input": "mlp.norm",
    "mlp.gated": "mlp.up",
}
RESIDUAL_READERS = {"attention.norm": ("attention.q", "attention.k", "attention.v"), "mlp.norm": ("mlp.gate", "mlp.up")}
RESIDUAL_WRITERS = ("attention.o", "mlp.down")

Which = Literal["all", "masked", "visible"]


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


@dataclass(frozen=True)
class Sample:
    """One batch of what a site sees: x [b, t, in] as the model computes it; weight [b, t] of its tokens."""

    x: Tensor
    context: AttentionContext
    weight: Tensor

    @property
    def rows(self) -> tuple[Tensor, Tensor]:
        """X float32 [tokens, in] and weight [tokens], without the tokens of weight 0."""
        keep = self.weight > 0
        return self.x[keep].float(), self.weight[keep]


class Block:
    """One block under compilation. Passes read its inputs and rewrite its linears and norms in place."""

    def __init__(
        self,
        index: int,
        shape: DecoderShape,
        module: DecoderBlock,
        schemes: dict[str, tuple[ModuleEntry, Scheme | None]],
        stream: Stream,
        seed: int,
    ) -> None:
        """schemes: part -> (entry, scheme or None), in forward order. The block's linears are replaced by `Linear`s."""
        self.index = index
        self.shape = shape
        self.module = module
        self.stream = stream
        self.seed = seed
        self.in_basis = stream.basis is None
        self.linears: dict[str, Linear] = {}
        for part, (entry, scheme) in schemes.items():
            self.linears[part] = Linear(entry, scheme, *weight_and_bias(module.part(part)))
            module.replace(part, self.linears[part])
        self._statistics: dict[str, Statistics] = {}

    def generator(self, name: str) -> torch.Generator:
        """Random numbers that depend on the recipe's seed, the block and `name` alone: resuming changes nothing."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{self.index}/{name}".encode()))

    def sites(self, uses: Iterable[Linear] | None = None) -> list[Site]:
        """The sites of this block in forward order; with `uses`, those that any of these linears read."""
        groups: dict[str, list[Linear]] = {}
        for linear in self.linears.values():
            groups.setdefault(linear.entry.site.split(".", 1)[1], []).append(linear)
        sites = [Site(name, tuple(linears)) for name, linears in groups.items()]
        if uses is None:
            return sites
        wanted = set(uses)
        return [site for site in sites if wanted.intersection(site.linears)]

    def additions(self) -> tuple[Tensor, Tensor]:
        """What attention and MLP add to the residual stream on the first calibration batch, in the checkpoint's basis.

        Apart from the stream, which can be so large that nothing shows beside it. All of it in true float32, whatever
        the stream's dtype and the caller's precision of products, so that rounding neither hides what a pass did nor
        passes for it.
        """
        x, batch = next(self.stream.inputs(self.in_basis))
        with torch.no_grad(), exact_products():
            x = x.float()
            mixed = self.module.attend(self.module.part("attention.norm")(x), batch.context)
            fed = self.module.feed_forward(self.module.part("mlp.norm")(x + mixed))
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
                with self._unrounded():
                    unrounded = self._seen({site}, whole, batch)[site]
                tokens = Tokens(batch.masked.reshape(-1)[keep], batch.weight.reshape(-1)[keep])
                yield seen[keep], unrounded[keep], tokens

    def _seen(self, sites: Collection[str], x: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What each of these sites reads, [tokens, in], in one forward pass."""
        seen: dict[str, Tensor] = {}
        watched = [site for site in self.sites() if site.name in sites]

        def watch(name: str) -> Callable[[Tensor], None]:
            def observe(value: Tensor) -> None:
                seen[name] = value
                if len(seen) == len(watched):
                    raise _Reached

            return observe

        for site in watched:
            site.linears[0].observe = watch(site.name)
        try:
            with torch.no_grad(), fast_products(), suppress(_Reached):
                self.module(x, batch.context)
        finally:
            for site in watched:
                site.linears[0].observe = None
        return seen

    @contextmanager
    def _unrounded(self) -> Iterator[None]:
        for linear in self.linears.values():
            linear.rounding = False
        try:
            yield
        finally:
            for linear in self.linears.values():
                linear.rounding = True

    def statistics(self, site: str) -> Statistics:
        """Peaks, means and sampled rows of a site's inputs; one pass over the calibration data serves all sites."""
        if site not in self._statistics:
            names = [s.name for s in self.sites()]
            gather = {name: Gather(len(self.stream.batches), self.generator(f"sample/{name}")) for name in names}
            for seen, tokens in self.inputs(names):
                for name, x in seen.items():
                    gather[name].observe(x, tokens)
            self._statistics = {name: gathered.statistics() for name, gathered in gather.items()}
        return self._statistics[site]

    def hessian(self, site: str, transform: InputTransform | None, which: Which = "all") -> Tensor:
        """H = 2 X^T diag(c) X / sum(c) of the site's inputs after the transform, float32 [in, in].

        c: the tokens' weights. which: all positions, or the masked or the visible ones alone; zeros where none are.
        """
        total: Tensor | None = None
        count = torch.zeros((), dtype=torch.float64)
        for seen, tokens in self.inputs({site}):
            x = seen[site].float() if transform is None else transform.apply(seen[site])
            weight = tokens.weight
            if which != "all":
                weight = weight * (tokens.masked if which == "masked" else ~tokens.masked)
            count += weight.sum(dtype=torch.float64).cpu()
            product = weighted_product(x, x, weight)
            total = product if total is None else total.add_(product)
        assert total is not None
        return total.mul_(2.0 / float(count)) if count else total

    def sample(self, site: str, tokens: int) -> list[Sample]:
        """What a site sees in whole batches that are spread evenly over those with a token of weight above 0.

        As many batches as hold `tokens` tokens; all of them where there are fewer.
        """
        usable = [i for i, batch in enumerate(self.stream.batches) if bool((batch.weight > 0).any())]
        wanted = min(len(usable), -(-tokens // self.stream.batches[0].weight.numel()))
        chosen = {usable[i * len(usable) // wanted] for i in range(wanted)}
        found = []
        for i, (x, batch) in enumerate(self.stream.inputs(self.in_basis)):
            if i in chosen:
                seen = self._seen({site}, x, batch)[site]
                found.append(Sample(seen.reshape(*batch.weight.shape, -1), batch.context, batch.weight))
        return found

    def consume(self, site: str, sample: Sample) -> Tensor:
        """[b, t, out]: what the module computes that reads the site's input: attention, MLP, or the one linear."""
        with torch.no_grad(), fast_products():
            if site == "attention.input":
                return self.module.attend(sample.x, sample.context)
            if site == "mlp.input":
                return self.module.feed_forward(sample.x)
            (linear,) = self._site(site).linears
            return cast(Tensor, linear(sample.x))

    def shared(self, site: str, scale: Tensor) -> Tensor:
        """The scale [in] that `rescale_input` makes of another.

        Where several query heads read one value head, they share its scale (their largest).
        """
        if site != "attention.mixed":
            return scale
        repeats = self.shape.heads // self.shape.kv_heads
        heads = scale.reshape(self.shape.kv_heads, repeats, self.shape.head_width)
        return heads.amax(1, keepdim=True).expand_as(heads).reshape(-1)

    def rescale_input(self, site: str, scale: Tensor) -> None:
        """x, W --> x / s, W s for every linear of the site; 1 / s goes into what produces x. s: of `shared`.

        scale: float32 [in]. Raises InputError if the producer, or a reader, is quantized already, or if a clip was
        searched for a reader's weights as they are.
        """
        producer = PRODUCERS[site]
        readers = self._site(site).linears
        who = f"scaling {site}"
        for linear in [*readers, *([self.linears[producer]] if producer in self.linears else [])]:
            linear.require_float(who)
        for linear in readers:
            linear.require_open(who)
        scale = self.shared(site, scale)
        rows = scale
        if site == "attention.mixed":
            repeats = self.shape.heads // self.shape.kv_heads
            rows = scale.reshape(self.shape.kv_heads, repeats, self.shape.head_width)[:, 0].reshape(-1)
        for linear in readers:
            linear.weight = linear.weight * scale
        if producer in self.linears:
            source = self.linears[producer]
            source.weight = source.weight / rows[:, None]
            source.bias = None if source.bias is None else source.bias / rows
        else:
            self._set_gain(producer, self._gain(producer) / rows)
        if site in self._statistics:
            self._statistics[site] = self._statistics[site].scaled(1 / scale)

    def fit_scales(self, uses: Collection[Linear]) -> None:
        """x, W --> x / 2^e, W 2^e where scales of the selected linears do not fit their stored dtype, and others would.

        A kept linear has no scales, and moves with the others that read its input. Powers of two change no bit of the
        function and no code. Where the inputs' producer is quantized already, a clip was searched, or no e serves every
        reader, nothing is done: the quantizer says which layer does not fit.
        """
        for site in reversed(self.sites(uses)):
            producer = self.linears.get(PRODUCERS[site.name])
            concerned = site.linears if producer is None else (*site.linears, producer)
            if any(linear.quantized is not None or linear.clip is not None for linear in concerned):
                continue
            readers = [linear for linear in site.linears if linear in uses and linear.scheme is not None]
            exponent = numerics.fitting_exponent((linear.weight, linear.formats.weights) for linear in readers)
            if exponent:
                self.rescale_input(site.name, torch.full_like(site.linears[0].weight[0], 2.0**exponent))

    def rotate_residual(self) -> None:
        """The block in the stream's basis: reads h Q, writes y Q (arXiv 2404.00456, stage 1a).

        With g a norm's gain: W --> W diag(g) Q for what reads the norm, g --> 1; W --> Q^T W, b --> b Q for what writes
        to the residual stream. Raises InputError if a linear is quantized already.
        """
        basis = self.stream.basis
        if basis is None or self.in_basis:
            return
        for linear in self.linears.values():
            linear.require_float("rotating the residual stream")
        q = basis.double()
        for norm, readers in RESIDUAL_READERS.items():
            gain = self._gain(norm).double()
            for part in readers:
                linear = self.linears[part]
                linear.weight = (linear.weight.double() * gain @ q).float()
            self._set_gain(norm, torch.ones_like(gain, dtype=torch.float32))
        for part in RESIDUAL_WRITERS:
            linear = self.linears[part]
            linear.weight = (q.T @ linear.weight.double()).float()
            linear.bias = None if linear.bias is None else (linear.bias.double() @ q).float()
        self.in_basis = True
        self.forget_statistics()

    def rotate_heads(self, rotation: Tensor) -> None:
        """v --> v R in every head: W_v --> R^T W_v, b_v --> b_v R, W_o --> W_o R (arXiv 2404.00456, stage 1c).

        rotation: orthogonal float64 [head width, head width]. Raises InputError if v or o is quantized already.
        """
        v, o = self.linears["attention.v"], self.linears["attention.o"]
        for linear in (v, o):
            linear.require_float("rotating the heads")
        r = rotation.to(v.weight.device)
        heads = v.weight.double().reshape(-1, r.shape[0], v.weight.shape[1])
        v.weight = (r.T @ heads).reshape(v.weight.shape).float()
        v.bias = None if v.bias is None else block_rotate(v.bias.double(), r).float()
        o.weight = block_rotate(o.weight.double(), r).float()
        self.forget_statistics()

    def _site(self, name: str) -> Site:
        return next(site for site in self.sites() if site.name == name)

    def forget_statistics(self) -> None:
        """To be called once inputs further on have changed: weights were rounded, or rotated."""
        self._statistics.clear()

    def _gain(self, norm: str) -> Tensor:
        return weight_and_bias(self.module.part(norm))[0].float()

    def _set_gain(self, norm: str, gain: Tensor) -> None:
        self.module.part(norm).weight = nn.Parameter(gain, requires_grad=False)


class _Reached(Exception):  # noqa: N818 - not an error: the last watched site was seen
    """Ends a forward pass that has shown everything that is watched."""
