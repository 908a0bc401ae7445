"""What a pass rewrites: the linears of one block, the norms and linears that produce their inputs, and its basis."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from qspec import numerics
from qspec.calibrate.stream import Stream
from qspec.errors import QspecError
from qspec.formats import Scheme
from qspec.models.decoder_block import DecoderBlock
from qspec.models.family import DecoderShape, ModuleEntry
from qspec.models.operations import weight_and_bias
from qspec.passes.linear import Linear
from qspec.passes.observed import Observed, Site
from qspec.transforms import block_rotate

NORMS = {  # of the sites that read the residual stream
    "attention.input": "attention.norm",
    "mlp.input": "mlp.norm",
    "mlp.experts.input": "mlp.experts_norm",
    "mlp.router.input": "mlp.router_norm",
}


def producer_of(site: str, shape: DecoderShape) -> str | None:
    """What produces the input of a site, and so can absorb its scale: a norm's gain or the rows of a linear. None for
    attention whose values are normed: no scale survives that."""
    if site == "attention.mixed":
        return None if shape.values_normed else "attention.v"
    return NORMS.get(site) or f"{site.removesuffix('gated')}up"


def generator(block: str, name: str) -> torch.Generator:
    """Random numbers that depend on the recipe's seed, the block and `name` alone: resuming changes nothing."""
    return torch.Generator().manual_seed(zlib.crc32(f"{block}/{name}".encode()))


class Block:
    """One block under compilation: passes rewrite its linears and norms in place, by what was observed of them."""

    def __init__(
        self,
        index: int,
        shape: DecoderShape,
        module: DecoderBlock,
        schemes: dict[str, tuple[ModuleEntry, Scheme | None]],
        stream: Stream,
        seed: int,
    ) -> None:
        """schemes: local name -> (entry, scheme or None), in forward order. The block's linears become `Linear`s."""
        self.index = index
        self.shape = shape
        self.module = module
        self.generator = partial(generator, f"{seed}/{index}")
        self.linears: dict[str, Linear] = {}
        for part, (entry, scheme) in schemes.items():
            self.linears[part] = Linear(entry, scheme, *weight_and_bias(module.part(part)))
            module.replace(part, self.linears[part])
        self.observed = Observed(module, self.linears, stream, self.generator)

    def sites(self, uses: Iterable[Linear] | None = None) -> list[Site]:
        """The sites of this block in forward order; with `uses`, those that any of these linears read."""
        if uses is None:
            return self.observed.sites
        wanted = set(uses)
        return [site for site in self.observed.sites if wanted.intersection(site.linears)]

    def shared(self, site: str, scale: Tensor) -> Tensor:
        """The scale [in] that `rescale_input` makes of another.

        Where several query heads read one value head, they share its scale (their largest).
        """
        if site != "attention.mixed":
            return scale
        how = self.module
        heads = scale.reshape(how.kv_heads, how.heads // how.kv_heads, how.head_width)
        return heads.amax(1, keepdim=True).expand_as(heads).reshape(-1)

    def rescale_input(self, site: str, scale: Tensor) -> None:
        """x, W --> x / s, W s for every linear of the site; 1 / s goes into what produces x. s: of `shared`.

        scale: float32 [in]. Raises InputError if the producer, or a reader, is quantized already, or if a clip was
        searched for a reader's weights as they are.
        """
        producer = producer_of(site, self.shape)
        readers = self.observed.site(site).linears
        who = f"scaling {site}"
        if producer is None:
            raise QspecError(f"{who}: nothing can take the scale", where=f"blocks[{self.index}].{site}")
        for linear in [*readers, *([self.linears[producer]] if producer in self.linears else [])]:
            linear.require_float(who)
        for linear in readers:
            linear.require_open(who)
        scale = self.shared(site, scale)
        rows = scale
        if site == "attention.mixed":
            how = self.module
            rows = scale.reshape(how.kv_heads, how.heads // how.kv_heads, how.head_width)[:, 0].reshape(-1)
        for linear in readers:
            linear.weight = linear.weight * scale
        if producer in self.linears:
            source = self.linears[producer]
            source.weight = source.weight / rows[:, None]
            source.bias = None if source.bias is None else source.bias / rows
        else:
            self._set_gain(producer, self._gain(producer) / rows)
        self.observed.scale(site, 1 / scale)

    def fit_scales(self, uses: Collection[Linear]) -> None:
        """x, W --> x / 2^e, W 2^e where scales of the selected linears do not fit their stored dtype, and others would.

        A kept linear has no scales, and moves with the others that read its input. Powers of two change no bit of the
        function and no code. Where the inputs' producer is quantized already, a clip was searched, or no e serves every
        reader, nothing is done: the quantizer says which layer does not fit.
        """
        for site in reversed(self.sites(uses)):
            name = producer_of(site.name, self.shape)
            if name is None:
                continue
            producer = self.linears.get(name)
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
        basis = self.observed.stream.basis
        if basis is None or self.observed.in_basis:
            return
        for linear in self.linears.values():
            linear.require_float("rotating the residual stream")
        q = basis.double()
        for site, norm in ((site.name, NORMS[site.name]) for site in self.sites() if site.name in NORMS):
            gain = self._gain(norm).double()
            for linear in self.observed.site(site).linears:
                linear.weight = (linear.weight.double() * gain @ q).float()
            self._set_gain(norm, torch.ones_like(gain, dtype=torch.float32))
        for linear in (one for one in self.linears.values() if one.entry.role.part.endswith((".o", ".down"))):
            linear.weight = (q.T @ linear.weight.double()).float()
            linear.bias = None if linear.bias is None else (linear.bias.double() @ q).float()
        self.observed.in_basis = True
        self.observed.forget()

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
        self.observed.forget()

    def _gain(self, norm: str) -> Tensor:
        return weight_and_bias(self.module.part(norm))[0].float()

    def _set_gain(self, norm: str, gain: Tensor) -> None:
        self.module.part(norm).weight = nn.Parameter(gain, requires_grad=False)
