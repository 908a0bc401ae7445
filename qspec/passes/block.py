"""What a pass rewrites: the linears of one block, their inputs on the calibration data, the sites that they share."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from qspec import numerics
from qspec.calibrate.stream import Batch, Stream, fast_products
from qspec.errors import InputError
from qspec.formats import Scheme
from qspec.models.decoder import AttentionContext, DecoderBlock, weight_and_bias
from qspec.models.family import DecoderShape, ModuleEntry
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
SAMPLE_ROWS = 256  # tokens of an input that are kept for searches
TOP_ROWS_SHARE = 4  # one in four sampled rows is among those with the largest peak, the rest are drawn at random

Which = Literal["all", "masked", "visible"]


class Linear(nn.Module):
    """One linear while it is compiled: float32 weight [out, in] until `quantized` is set.

    `transform` is what its input goes through online; `weight` already holds the inverse. `clip`: ratio float32
    [out, groups] that a search found for the ranges of the weight's groups, in place of the scheme's.
    """

    def __init__(self, entry: ModuleEntry, scheme: Scheme | None, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.entry = entry
        self.scheme = scheme
        self.weight = weight.float()
        self.bias = None if bias is None else bias.float()
        self.transform: InputTransform | None = None
        self.clip: Tensor | None = None
        self.quantized: numerics.Quantized | None = None
        self.rounding = True
        self.observe: Callable[[Tensor], None] | None = None

    @property
    def formats(self) -> Scheme:
        """The scheme of a linear that has one; passes are only called with those."""
        assert self.scheme is not None
        return self.scheme

    def absorb(self, transform: InputTransform) -> None:
        """x W^T --> T(x) (W T^-1)^T."""
        self.weight = transform.absorb(self.weight)
        self.transform = transform

    @property
    def input_key(self) -> tuple[object, ...]:
        """Linears of one site with equal keys share `prepare`."""
        return (id(self.transform), self.formats.activations if self._rounds else None)

    def prepare(self, x: Tensor) -> PreparedInput:
        """x [..., in] as it comes, and T(x), rounded to the scheme's activations once the weights are codes."""
        return PreparedInput(x, self.rounded_input(x) if self._rounds else self.transformed(x))

    def transformed(self, x: Tensor) -> Tensor:
        """T(x) [..., in], float32."""
        return x.float() if self.transform is None else self.transform.apply(x)

    def rounded_input(self, x: Tensor) -> Tensor:
        """T(x) [..., in], rounded to the scheme's activations, float32."""
        ready = self.transformed(x)
        if self.formats.activations is None:
            return ready
        rows = ready.reshape(-1, x.shape[-1])
        return numerics.quantize_activations(rows, self.formats.activations).dequantize().reshape(x.shape)

    def multiply(self, prepared: PreparedInput) -> Tensor:
        """[..., out], with the rounding that has been decided so far."""
        if self.observe is not None:
            self.observe(prepared.raw.reshape(-1, prepared.raw.shape[-1]))
        weight = self.rounded_weight() if self._rounds else self.weight
        return functional.linear(prepared.ready, weight, self.bias).to(prepared.raw.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(self.prepare(x))

    def rounded_weight(self) -> Tensor:
        """float32 [out, in]."""
        return self.weight if self.quantized is None else self.quantized.dequantize()

    def require_float(self, who: str) -> None:
        """Raises InputError where the weight is codes already."""
        if self.quantized is not None:
            raise InputError(
                f"{who} rewrites {self.entry.role}, which is quantized already",
                where=str(self.entry.role),
                hint="put this pass before every quantizing pass",
            )

    def require_open(self, who: str) -> None:
        """Raises InputError where a clip was searched for the weight as it is."""
        if self.clip is not None:
            raise InputError(
                f"{who} rewrites {self.entry.role}, whose clip was searched already",
                where=str(self.entry.role),
                hint="put this pass before every clip search",
            )

    @property
    def _rounds(self) -> bool:
        return self.rounding and self.quantized is not None


@dataclass(frozen=True)
class PreparedInput:
    """A linear's input before and after its online transform and rounding."""

    raw: Tensor
    ready: Tensor


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


class Tokens(NamedTuple):
    """What is known of the tokens of one batch: masked bool [tokens]; weight float32 [tokens], above 0."""

    masked: Tensor
    weight: Tensor


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


@dataclass(frozen=True)
class Moments:
    """Of an input X over some tokens. peaks: max |X_j|, float32 [in]. mean: mean |X_j| by the tokens' weights, float32
    [in]. weight: the sum of those weights. All zero where there are no such tokens.
    """

    peaks: Tensor
    mean: Tensor
    weight: float

    def scaled(self, factor: Tensor) -> Moments:
        return Moments(self.peaks * factor, self.mean * factor, self.weight)


@dataclass(frozen=True)
class Statistics:
    """Of a site's inputs X, with masked and visible positions apart.

    rows: float32 [rows, in], inputs at tokens drawn at random and at those with the largest peaks.
    """

    masked: Moments
    visible: Moments
    rows: Tensor

    @property
    def peaks(self) -> Tensor:
        """max |X_j| over all tokens, float32 [in]."""
        return torch.maximum(self.masked.peaks, self.visible.peaks)

    @property
    def mean(self) -> Tensor:
        """mean |X_j| over all tokens by their weights, float32 [in]."""
        parts = (self.masked, self.visible)
        total = sum(part.weight for part in parts)
        return torch.stack([part.mean * (part.weight / total) for part in parts]).sum(0)

    def scaled(self, factor: Tensor) -> Statistics:
        """Of X times factor [in]."""
        return Statistics(self.masked.scaled(factor), self.visible.scaled(factor), self.rows * factor)


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

    def output(self) -> Tensor:
        """The block's output on the first calibration batch, in the basis that the checkpoint has.

        All of it in float32, whatever the stream's dtype, so that rounding does not hide what a pass did.
        """
        x, batch = next(self.stream.inputs(self.in_basis))
        with torch.no_grad():
            y: Tensor = self.module(x.float(), batch.context)
        return y if self.stream.basis is None or not self.in_basis else y @ self.stream.basis.T

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
            gather = {name: _Gather(len(self.stream.batches), self.generator(f"sample/{name}")) for name in names}
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
        return total.mul_(2.0 / max(float(count), 1e-30))

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


def weighted_product(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """X^T diag(c) Y, float32 [in, in], for X, Y [tokens, in] and c [tokens]."""
    with fast_products():
        return (x * weight[:, None]).T @ y


def weighted_square(y: Tensor, weight: Tensor) -> float:
    """sum_t c_t ||y_t||^2 for y [..., out] and c [...]."""
    return float((y.square().sum(-1) * weight).sum(dtype=torch.float64))


class _Reached(Exception):  # noqa: N818 - not an error: the last watched site was seen
    """Ends a forward pass that has shown everything that is watched."""


class _Gather:
    """Takes statistics of the inputs that it observes over `batches` batches."""

    def __init__(self, batches: int, generator: torch.Generator) -> None:
        self.top = SAMPLE_ROWS // TOP_ROWS_SHARE
        self.each = -(-(SAMPLE_ROWS - self.top) // batches)
        self.generator = generator
        self.drawn: list[Tensor] = []
        self.largest: Tensor | None = None
        self.parts: dict[str, list[Moments]] = {"masked": [], "visible": []}

    def observe(self, x: Tensor, tokens: Tokens) -> None:
        x = x.float()
        for name, chosen in (("masked", tokens.masked), ("visible", ~tokens.masked)):
            self.parts[name] = [_merged([*self.parts[name], _moments(x, tokens.weight * chosen)])]
        chosen = torch.randperm(x.shape[0], generator=self.generator)[: self.each]
        self.drawn.append(x[chosen.to(x.device)])
        pool = x if self.largest is None else torch.cat([self.largest, x])
        self.largest = pool[pool.abs().amax(1).topk(min(self.top, pool.shape[0])).indices]

    def statistics(self) -> Statistics:
        assert self.largest is not None
        (masked,), (visible,) = self.parts["masked"], self.parts["visible"]
        return Statistics(masked, visible, torch.cat([*self.drawn, self.largest])[-SAMPLE_ROWS:])


def _moments(x: Tensor, weight: Tensor) -> Moments:
    """Of the tokens of X [tokens, in] whose weight [tokens] is above 0."""
    size = x.abs()
    total = float(weight.sum())
    counted = size * (weight > 0)[:, None]
    return Moments(counted.amax(0), weight @ size / total if total else torch.zeros_like(x[0]), total)


def _merged(parts: list[Moments]) -> Moments:
    total = sum(part.weight for part in parts)
    share = [part.weight / total if total else 0.0 for part in parts]
    mean = torch.stack([part.mean * s for part, s in zip(parts, share, strict=True)]).sum(0)
    return Moments(torch.stack([part.peaks for part in parts]).amax(0), mean, total)
