"""What a pass rewrites: the linears of one block, their inputs on the calibration data, the sites that they share."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from qspec import numerics
from qspec.calibrate.stream import Stream
from qspec.errors import InputError
from qspec.formats import Scheme
from qspec.models.decoder import DecoderBlock, weight_and_bias
from qspec.models.family import DecoderShape, ModuleEntry
from qspec.transforms import InputTransform

# What produces the input of a site, and so can absorb its scale: a norm's gain or the rows of a linear.
PRODUCERS = {
    "attention.input": "attention.norm",
    "attention.mixed": "attention.v",
    "mlp.input": "mlp.norm",
    "mlp.gated": "mlp.up",
}
SAMPLE_ROWS = 256  # tokens of an input that are kept for searches
TOP_ROWS_SHARE = 4  # one in four sampled rows is among those with the largest peak, the rest are drawn at random


class Linear(nn.Module):
    """One linear while it is compiled: float32 weight [out, in] until `quantized` is set.

    `transform` is what its input goes through online; `weight` already holds the inverse.
    """

    def __init__(self, entry: ModuleEntry, scheme: Scheme | None, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.entry = entry
        self.scheme = scheme
        self.weight = weight.float()
        self.bias = None if bias is None else bias.float()
        self.transform: InputTransform | None = None
        self.quantized: numerics.Quantized | None = None
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
        return (id(self.transform), None if self.quantized is None else self.formats.activations)

    def prepare(self, x: Tensor) -> PreparedInput:
        """x [..., in] as it comes, and T(x), rounded to the scheme's activations once the weights are codes."""
        ready = x.float() if self.transform is None else self.transform.apply(x)
        if self.quantized is not None and self.formats.activations is not None:
            rows = ready.reshape(-1, x.shape[-1])
            ready = numerics.quantize_activations(rows, self.formats.activations).dequantize().reshape(x.shape)
        return PreparedInput(x, ready)

    def multiply(self, prepared: PreparedInput) -> Tensor:
        """[..., out], with the rounding that has been decided so far."""
        if self.observe is not None:
            self.observe(prepared.raw.reshape(-1, prepared.raw.shape[-1]))
        return functional.linear(prepared.ready, self.rounded_weight(), self.bias).to(prepared.raw.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.multiply(self.prepare(x))

    def rounded_weight(self) -> Tensor:
        """float32 [out, in]."""
        return self.weight if self.quantized is None else self.quantized.dequantize()


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


@dataclass(frozen=True)
class Statistics:
    """Of a site's inputs X. peaks: max |X_j| over all calibration tokens, float32 [in].

    rows: float32 [rows, in], inputs at tokens drawn at random and at those with the largest peaks.
    """

    peaks: Tensor
    rows: Tensor


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

    def visit_inputs(self, observers: dict[str, Callable[[Tensor], None]]) -> None:
        """Runs the calibration data through the block once; each site's observer gets its inputs [tokens, in].

        A batch goes no further than the last site that is watched.
        """
        watched = [(site.linears[0], observers[site.name]) for site in self.sites() if site.name in observers]
        for linear, observer in watched:
            linear.observe = observer
        last, final = watched[-1]

        def observe_and_stop(x: Tensor) -> None:
            final(x)
            raise _Reached

        last.observe = observe_and_stop
        try:
            with torch.no_grad():
                for x, context in zip(self.stream.batches, self.stream.contexts, strict=True):
                    with suppress(_Reached):
                        self.module(x, context)
        finally:
            for linear, _ in watched:
                linear.observe = None

    def statistics(self, site: str) -> Statistics:
        """Peaks and sampled rows of a site's inputs; one pass over the calibration data serves all sites."""
        if site not in self._statistics:
            gather = {s.name: _Gather(len(self.stream), self.generator(f"sample/{s.name}")) for s in self.sites()}
            self.visit_inputs({name: gathered.observe for name, gathered in gather.items()})
            self._statistics = {name: gathered.statistics() for name, gathered in gather.items()}
        return self._statistics[site]

    def hessian(self, site: str, transform: InputTransform | None) -> Tensor:
        """H = 2 X^T X / n of the site's inputs after the transform, float32 [in, in]."""
        total: list[Tensor] = []
        count = 0

        def observe(x: Tensor) -> None:
            nonlocal count
            x = x.float() if transform is None else transform.apply(x)
            count += x.shape[0]
            product = x.T @ x
            total[:] = [product if not total else total[0] + product]

        self.visit_inputs({site: observe})
        return total[0] * (2.0 / count)

    def rescale_input(self, site: str, scale: Tensor) -> None:
        """x, W --> x / s, W s for every linear of the site; 1 / s goes into what produces x.

        scale: float32 [in]. Where several query heads read one value head, they share its scale (their largest).
        Raises InputError if the producer, or a reader, is quantized already.
        """
        producer = PRODUCERS[site]
        readers = next(s for s in self.sites() if s.name == site).linears
        touched = [*readers, *([self.linears[producer]] if producer in self.linears else [])]
        for linear in touched:
            if linear.quantized is not None:
                raise InputError(
                    f"smoothing {site} rescales {linear.entry.role}, which is quantized already",
                    where=f"block {self.index}",
                    hint="put the smoothing pass before every quantizing pass",
                )
        rows = scale
        if site == "attention.mixed":
            shared = scale.reshape(self.shape.kv_heads, -1, self.shape.head_width).amax(1)
            rows = shared.reshape(-1)
            repeats = self.shape.heads // self.shape.kv_heads
            scale = shared.repeat_interleave(repeats, 0).reshape(-1)
        for linear in readers:
            linear.weight = linear.weight * scale
        if producer in self.linears:
            source = self.linears[producer]
            source.weight = source.weight / rows[:, None]
            source.bias = None if source.bias is None else source.bias / rows
        else:
            norm = self.module.part(producer)
            gain, _ = weight_and_bias(norm)
            norm.weight = nn.Parameter(gain.float() / rows, requires_grad=False)
        if site in self._statistics:
            known = self._statistics[site]
            self._statistics[site] = Statistics(known.peaks / scale, known.rows / scale)

    def forget_statistics(self) -> None:
        """To be called once weights were rounded: inputs further on have changed."""
        self._statistics.clear()


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
        self.peaks: Tensor | None = None

    def observe(self, x: Tensor) -> None:
        x = x.float()
        peaks = x.abs().amax(0)
        self.peaks = peaks if self.peaks is None else torch.maximum(self.peaks, peaks)
        chosen = torch.randperm(x.shape[0], generator=self.generator)[: self.each]
        self.drawn.append(x[chosen.to(x.device)])
        pool = x if self.largest is None else torch.cat([self.largest, x])
        self.largest = pool[pool.abs().amax(1).topk(min(self.top, pool.shape[0])).indices]

    def statistics(self) -> Statistics:
        assert self.peaks is not None
        assert self.largest is not None
        return Statistics(self.peaks, torch.cat([*self.drawn, self.largest])[-SAMPLE_ROWS:])
