"""Allocates outputs and launches the generated kernels on the tensors of one linear."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qspec.catalog import PAIR, ActivationKernel, AttentionKernel, CommitKernel, LikeliestKernel, RotaryKernel
from qspec.errors import InputError
from qspec.kernels import reference, tuned
from qspec.kernels.generate import KernelLibrary
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import PreparedInput
from qspec.models.commit import Sure
from qspec.models.inputs import Gated, LayerInput, Normed, value_of
from qspec.models.operations import AttentionContext
from qspec.transforms import InputTransform

ROOM = 16  # rows of the smallest box of tokens
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class PlacedTransform:
    """An input transform as the activation quantization kernels read it, on one device.

    rotations: float16 [block, block]. permutation: int16 [K], or None.
    """

    rotations: tuple[Tensor, ...]
    permutation: Tensor | None

    @classmethod
    def of(cls, transform: InputTransform, device: torch.device) -> PlacedTransform:
        placed = transform.to(device)
        permutation = None if placed.permutation is None else placed.permutation.to(torch.int16)
        return cls(tuple(r.contiguous() for r in placed.rotations), permutation)

    def arguments(self) -> dict[str, Tensor]:
        """The parameters of an activation quantization kernel that hold the transform."""
        named = {f"rotation{index}": rotation for index, rotation in enumerate(self.rotations)}
        return named if self.permutation is None else {**named, "permutation": self.permutation}


def prepare(
    library: KernelLibrary,
    row: ActivationKernel | None,
    transform: PlacedTransform | None,
    given: LayerInput,
    live: Tensor | None = None,
) -> PreparedInput:
    """The input through the activation quantization kernel, as `reference.prepare` defines it.

    live: int32 [1] on the device, how many rows are wanted; what the others give may be anything.
    """
    reference.check_source(row, given)
    if row is None or row.source == "plain":
        given = value_of(given)
    x = given if isinstance(given, Tensor) else given.x
    if x.dtype not in DTYPES:
        raise InputError(f"the kernels take float32, float16 and bfloat16, not {x.dtype}")
    rows = _rows(x)
    if row is None:
        return PreparedInput(rows.contiguous(), None, None, x.shape, x.dtype)
    arguments: dict[str, Tensor | float] = {"x": rows, **(transform.arguments() if transform else {})}
    if isinstance(given, Normed):
        arguments |= {"gain": given.gain, "eps": given.eps}
    elif isinstance(given, Gated):
        arguments |= _alike(rows, _rows(given.up))
    results = outputs(row, rows)
    if rows.shape[0]:
        library.module(row).run(**arguments, **results, live=live)
    return prepared(row, list(results.values()), x)


def prepared(row: ActivationKernel, results: Sequence[Tensor], x: Tensor) -> PreparedInput:
    """What an activation quantization kernel made of x [..., K], from its results in the order of `outputs`."""
    named = dict(zip(row.results, results, strict=True))
    values = named["out"] if row.bits == 16 else named["codes"]
    return PreparedInput(values, named.get("scale"), named.get("zero"), x.shape, x.dtype, named.get("unit"))


def _rows(x: Tensor) -> Tensor:
    """x as [M, K], each row without gaps; a part of longer rows stays where it is."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _alike(x: Tensor, up: Tensor) -> dict[str, Tensor | float]:
    """The gate and what it multiplies, their rows equally far apart."""
    if x.stride(0) != up.stride(0):
        x, up = x.contiguous(), up.contiguous()
    return {"x": x, "up": up.to(x.dtype)}


def outputs(row: ActivationKernel, rows: Tensor) -> dict[str, Tensor]:
    """What the activation quantization kernel fills for X [M, K], by parameter."""
    tokens, columns = rows.shape
    scales = ((columns // row.group) if row.group else 1, tokens)
    kinds: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "out": ((tokens, columns), rows.dtype),
        "codes": ((tokens, columns // PAIR), torch.uint8) if row.pairs else ((tokens, columns), torch.int8),
        "scale": (scales, torch.uint8 if row.pairs else torch.float32),
        "zero": (scales, torch.int8),
        "unit": ((tokens,), torch.float32),
    }
    results = {}
    for name in row.results:
        shape, dtype = kinds[name]
        read = name in ("codes", "out")  # by a GEMM
        results[name] = (
            with_room(shape, dtype, rows.device) if read else torch.empty(shape, dtype=dtype, device=rows.device)
        )
    return results


def with_room(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An empty tensor [M, ...] with memory for `ROOM` rows behind its start: GEMMs of few tokens read so many."""
    return torch.empty((max(shape[0], ROOM), *shape[1:]), dtype=dtype, device=device)[: shape[0]]


def attend(library: KernelLibrary, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """y [b, heads, n, width], as `qspec.models.operations.attention` defines it, by the kernel of few queries."""
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    batch, heads, tokens, width = q.shape
    out = with_room((batch * tokens, heads, width), q.dtype, q.device).view(batch, tokens, heads, width)
    real = None if mask is None else mask.reshape(batch, -1).view(torch.uint8)
    library.module(AttentionKernel(width)).run(q, k, v, real, width**-0.5, out)
    return out.transpose(1, 2)


def rotate_and_keep(
    library: KernelLibrary, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext
) -> tuple[Tensor, Tensor, Tensor]:
    """As `qspec.models.operations.rotate_and_keep` defines it: the same bits, by one kernel.

    Queries lie token by token, [b, n, heads, width], and so do keys where none are kept.
    """
    q, k, v = (x if x.stride(3) == 1 else x.contiguous() for x in (q, k, v))
    queries, places = _token_by_token(q), None
    if context.kept is None:
        keys, kept = _token_by_token(k), None
        found = (keys, v)
    else:
        found = keys, kept = context.kept
        if isinstance(context.tokens, Tensor):
            places = context.tokens
        else:
            keys, kept = keys[:, :, context.tokens], kept[:, :, context.tokens]
    cos, sin = context.cos.contiguous(), context.sin.contiguous()
    library.module(RotaryKernel(q.shape[3])).run(q, k, v, cos, sin, places, queries, keys, kept)
    return queries, *found


def _token_by_token(x: Tensor) -> Tensor:
    """An empty tensor like x [b, heads, n, width], whose heads of one token lie together."""
    batch, heads, tokens, width = x.shape
    return torch.empty((batch, tokens, heads, width), dtype=x.dtype, device=x.device).transpose(1, 2)


def likeliest(
    library: KernelLibrary, logits: Tensor, absent: Tensor | None, finite: Tensor, measure: str
) -> tuple[Tensor, Tensor]:
    """Tokens int64 [...] and confidence float32 [...] of logits [..., vocab], as `qspec.models.likeliest` defines them.

    absent: bool [vocab]. finite: bool [], which becomes False where a logit is NaN or Inf.
    """
    rows = _rows(logits)
    tokens = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    confidence = torch.empty(len(rows), dtype=torch.float32, device=logits.device)
    if len(rows):
        barred = None if absent is None else absent.view(torch.uint8)
        kernel = library.module(LikeliestKernel(measure))
        kernel.run(rows, barred, finite.view(torch.uint8), tokens, confidence)
    return tokens.view(logits.shape[:-1]), confidence.view(logits.shape[:-1])


def commit(
    library: KernelLibrary,
    ids: Tensor,
    places: Tensor,
    offered: tuple[Tensor, Tensor],
    count: Tensor,
    mask: int,
    sure: Sure,
) -> tuple[Tensor, Tensor]:
    """As `qspec.models.commit.commit` defines it, of tokens and confidence, `offered`: the same bits, by one kernel."""
    tokens, confidence = (part.contiguous() for part in offered)
    chosen = torch.empty(tokens.shape, dtype=torch.bool, device=ids.device)
    left = torch.empty(len(tokens), dtype=torch.bool, device=ids.device)
    outputs = (chosen.view(torch.uint8), left.view(torch.uint8))
    library.module(CommitKernel()).run(ids, places, tokens, confidence, count, mask, *sure, *outputs)
    return chosen, left


def multiply(
    library: KernelLibrary,
    packed: PackedLinear,
    prepared: PreparedInput,
    options: tuned.Options | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Y [..., N] in the input's dtype, as `reference.multiply` defines it.

    options: tile sizes, or `tuned.CUBLAS`; None takes the measured ones, or else those that the kernel's file chooses.
    residual: [..., N] in the input's dtype; none of a gated GEMM, which gives [..., N/2].
    """
    values, gemm = prepared.values, packed.kernels.gemm
    channels = gemm.channels(packed.out_features)
    make = with_room if gemm.gated else torch.empty  # read by a GEMM
    out = make((values.shape[0], channels), dtype=prepared.dtype, device=values.device)
    arguments = {"weights": packed.codes, "weight_scale": packed.scale, "bias": packed.bias, "out": out}
    if residual is not None:
        assert not gemm.gated
        arguments["residual"] = residual.reshape(out.shape).contiguous()
    if packed.zero is not None:
        arguments["weight_zero"] = packed.zero
    if packed.unit is not None:
        arguments["weight_unit"] = packed.unit
    if prepared.scale is None:
        arguments["x"] = values
    else:
        arguments |= {"activations": values, "activation_scale": prepared.scale}
        if prepared.zero is not None:
            arguments["activation_zero"] = prepared.zero
        if prepared.unit is not None:
            arguments["activation_unit"] = prepared.unit
    if values.shape[0]:
        shape = (packed.out_features, packed.in_features, values.shape[0])
        if options is None:
            options = tuned.options_for(gemm, *shape, values.device)
        library.module(gemm).run(**arguments, options=options)
    return out.reshape(*prepared.shape[:-1], channels)
