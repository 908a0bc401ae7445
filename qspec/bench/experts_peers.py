"""What mixtures of experts are timed on, and other implementations: torch in bfloat16, packages where installed.

Some compute both products of rows that are sorted already (`Linears`), some a whole layer of routed tokens (`Layer`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from qspec import numerics
from qspec.bench.data import FORMATS
from qspec.bench.experts_data import Mixture
from qspec.numerics import Quantized

Pair = tuple[Tensor, Tensor]  # what gate and up of all experts read, and what down reads
Stacks = tuple[Quantized, Quantized]  # the experts' channels one behind another: of each gate, then up; and down


class Routed:
    """Random tokens of a mixture: x bfloat16 [n, d], chosen [n, k], weights [n, k]; counts: rows of each expert."""

    def __init__(self, size: Mixture, tokens: int) -> None:
        self.x = torch.randn(tokens, size.width, device="cuda", dtype=torch.bfloat16)
        self.chosen = torch.rand(tokens, size.experts, device="cuda").topk(size.chosen).indices
        self.ids = self.chosen.int()  # as vLLM's routers give them
        self.weights = torch.rand(tokens, size.chosen, device="cuda")
        self.order = self.chosen.flatten().argsort(stable=True)
        self.counts = torch.bincount(self.chosen.flatten(), minlength=size.experts)
        inner = torch.randn(tokens * size.chosen, size.inner, device="cuda", dtype=torch.bfloat16)
        self.rows: Pair = (self.x[self.order // size.chosen], inner)


Linears = Callable[[Routed], Sequence[Callable[[], Any]]]
Layer = Callable[[Routed], Tensor]


def random_stacks(fmt: str, size: Mixture) -> Stacks:
    """Random weights of all experts, quantized."""

    def stack(channels: int, columns: int) -> Quantized:
        weight = torch.randn(size.experts * channels, columns, device="cuda")
        return numerics.quantize_weight(weight, FORMATS[fmt].weights)

    return stack(2 * size.inner, size.width), stack(size.width, size.inner)


def peers_of(fmt: str, size: Mixture) -> Mapping[str, Callable[[], Linears]]:
    """What computes both products of a format here, the base apart."""
    if not find_spec("humming") or fmt == "w8a8_fp8":
        return {}
    weights, activations = FORMATS[fmt].weights, None if FORMATS[fmt].activations is None else 8
    bits, group = weights.number.bits, weights.granularity.size
    return {f"humming W{bits}A{activations or 16}": partial(Humming, size, bits, group, activations)}


def layer_peers_of(fmt: str, size: Mixture, stacks: Stacks) -> Mapping[str, Callable[[], Layer]]:
    """What computes a whole layer of a format here, the base apart."""
    if not find_spec("vllm"):
        return {}
    fused, marlin = partial(VllmFused, fmt, size, stacks), partial(VllmMarlin, size, stacks)
    found: Mapping[str, Mapping[str, Callable[[], Layer]]] = {
        "w8a8": {"vLLM W8A8": fused},
        "w8a8_fp8": {"vLLM fp8": fused},
        "w4a16_g128": {"vLLM W4A16": fused, "vLLM Marlin W4A16": marlin},
        "w4a8": {"vLLM Marlin W4A8": partial(marlin, activations=torch.int8)},
        "w4a4": {"vLLM Marlin W4A8": partial(marlin, activations=torch.int8)},
    }
    return found.get(fmt, {})


class Floats:
    """The mixture in bfloat16 by torch's grouped GEMM."""

    def __init__(self, size: Mixture) -> None:
        shapes = ((size.width, 2 * size.inner), (size.inner, size.width))
        self.weights = [_floats(size.experts, channels, columns) for columns, channels in shapes]

    def __call__(self, one: Routed) -> Sequence[Callable[[], Any]]:
        offsets = one.counts.cumsum(0).int()
        return [partial(self._product, x, w, offsets) for x, w in zip(one.rows, self.weights, strict=True)]

    def layer(self, one: Routed) -> Tensor:
        """Everything: sorting, gathering, both GEMMs, silu(gate) up, the weighted sum."""
        order = one.chosen.flatten().argsort(stable=True)
        bounds = torch.arange(1, self.weights[0].shape[0] + 1, device="cuda")
        offsets = torch.searchsorted(one.chosen.flatten()[order], bounds).int()
        both = self._product(one.x[order // one.chosen.shape[1]], self.weights[0], offsets)
        gate, up = both.chunk(2, dim=1)
        y = torch.empty(len(order), one.x.shape[1], device="cuda")
        y[order] = self._product(torch.nn.functional.silu(gate) * up, self.weights[1], offsets).float()
        return (y.view(*one.chosen.shape, -1) * one.weights[:, :, None]).sum(1).to(one.x.dtype)

    @staticmethod
    def _product(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
        return torch._grouped_mm(x, w.transpose(1, 2), offs=offsets)


class Humming:
    """humming's grouped layers, which quantize their input in every call."""

    def __init__(self, size: Mixture, bits: int, group: int, activations: int | None) -> None:
        from humming.layer import HummingLayer

        self.layers = []
        for columns, channels in ((size.width, 2 * size.inner), (size.inner, size.width)):
            inputs = {} if activations is None else {"input_config": {"dtype": f"int{activations}"}}
            scheme = {"dtype": f"int{bits}", "group_size": group}
            layer = HummingLayer(
                channels, columns, scheme, num_experts=size.experts, torch_dtype=torch.bfloat16, **inputs
            ).cuda()
            layer.load_from_unquantized(_floats(size.experts, channels, columns))
            layer.transform()
            self.layers.append(layer)

    def __call__(self, one: Routed) -> Sequence[Callable[[], Any]]:
        layout = torch.nn.functional.pad(one.counts.cumsum(0), (1, 0))
        kind = {"gemm_type": "grouped_contiguous"}
        return [
            partial(layer, x, expert_layout=layout, compute_config=kind)
            for layer, x in zip(self.layers, one.rows, strict=True)
        ]


class VllmFused:
    """vLLM's `fused_experts`, with the tile sizes that it chooses.

    Both products are its Triton kernel's, but those of 4-bit weights with at most 6 rows an expert, which it leaves to
    a kernel in CUDA.
    """

    def __init__(self, fmt: str, size: Mixture, stacks: Stacks) -> None:
        from vllm.model_executor.layers.fused_moe import config
        from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts

        (gate_up, s1), (down, s2) = (_of_experts(size, stack) for stack in stacks)
        if fmt == "w4a16_g128":
            gate_up, down, group = _nibbles(gate_up), _nibbles(down), FORMATS[fmt].weights.granularity.size
            made = config.int4_w4a16_moe_quant_config(s1.bfloat16(), s2.bfloat16(), block_shape=[0, group])
        elif fmt == "w8a8":
            made = config.int8_w8a8_moe_quant_config(s1, s2, None, None, per_act_token_quant=True)
        else:
            gate_up, down = gate_up.view(torch.float8_e4m3fn), down.view(torch.float8_e4m3fn)
            made = config.fp8_w8a8_moe_quant_config(s1, s2, per_act_token_quant=True, per_out_ch_quant=True)
        self._layer = partial(fused_experts, quant_config=made)
        self._weights = (gate_up, down)

    def __call__(self, one: Routed) -> Tensor:
        y: Tensor = self._layer(one.x, *self._weights, one.weights, one.ids)
        return y


class VllmMarlin:
    """vLLM's `fused_marlin_moe` with 4-bit weights, which it chooses for W4A16 where it has the choice.

    activations: the dtype that each token is quantized to in every call, as VLLM_MARLIN_INPUT_DTYPE asks for it.
    """

    def __init__(self, size: Mixture, stacks: Stacks, activations: torch.dtype | None = None) -> None:
        from vllm import _custom_ops as operators
        from vllm.model_executor.layers.fused_moe.experts.marlin_moe import fused_marlin_moe
        from vllm.model_executor.layers.quantization.utils.marlin_utils import marlin_moe_permute_scales
        from vllm.scalar_type import scalar_types

        in_8_bits = activations is not None
        no_order = torch.empty(size.experts, 0, dtype=torch.int32, device="cuda")
        self._weights, self._scales = [], []
        for stack in stacks:
            codes, scale = _of_experts(size, stack)
            shape = (codes.shape[2], codes.shape[1])
            words = _nibbles(codes).view(torch.int32).transpose(1, 2).contiguous()  # 8 input channels in one
            self._weights.append(operators.gptq_marlin_moe_repack(words, no_order, *shape, 4, in_8_bits))
            by_group = scale.bfloat16().transpose(1, 2).contiguous()
            group = stack.format.granularity.size or -1
            self._scales.append(marlin_moe_permute_scales(by_group, *shape, group, in_8_bits))
        self._layer = partial(
            fused_marlin_moe,
            quant_type_id=scalar_types.uint4b8.id,
            moe_sum=operators.moe_sum,
            input_dtype=activations,
        )

    def __call__(self, one: Routed) -> Tensor:
        y = torch.empty_like(one.x)
        self._layer(one.x, *self._weights, None, None, *self._scales, one.weights, one.ids, output=y)
        return y


def _of_experts(size: Mixture, stack: Quantized) -> Pair:
    """Codes [E, N, K] and scales [E, N, groups]."""
    codes, scale = (part.view(size.experts, -1, part.shape[1]) for part in (stack.codes, stack.scale))
    return codes, scale


def _nibbles(codes: Tensor) -> Tensor:
    """Signed codes of 4 bits [..., K] -> uint8 [..., K/2] of codes 8 higher, the first of two in the low nibble."""
    higher = (codes + 8).view(torch.uint8)
    return higher[..., ::2] | (higher[..., 1::2] << 4)


def _floats(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16) * 0.02
