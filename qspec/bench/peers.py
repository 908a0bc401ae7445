"""Other implementations on the same shapes: cuBLAS through torch, and packages where they are installed.

Each gives calls on its own random weights, one for each copy, so that a CUDA graph can rotate through them. Some
quantize their input in every call, as our figures `with input` do (`data.WITH_INPUT`); the others get it in 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from qspec.bench.data import BASE, FORMATS

Calls = list[Callable[[], Any]]
Peer = Callable[[int, Tensor, int], Calls]  # output channels, x bfloat16 [M, K], copies


def peers_of(fmt: str) -> dict[str, Peer]:
    """The implementations that a format is compared with here, the base first."""
    found: dict[str, Peer] = {BASE: cublas_bf16}
    scheme = FORMATS[fmt]
    activations = None if scheme.activations is None else 8  # of W4A4's peers too
    if activations:
        found |= {"cuBLAS fp8": cublas_fp8, "cuBLAS fp8 rows": cublas_fp8_rows}
    if find_spec("humming") and fmt != "w8a8_fp8":
        weights, group = scheme.weights.number.bits, scheme.weights.granularity.size
        name = f"humming W{weights}A{activations or 16}"
        found[name] = lambda channels, x, copies: humming(channels, x, copies, weights, group, activations)
        if fmt == "w8a8":
            found["humming W4A8"] = lambda channels, x, copies: humming(channels, x, copies, 4, 0, 8)
    if find_spec("gemlite") and fmt == "w8a8":
        found["gemlite W8A8"] = gemlite_w8a8
    return found


def cublas_bf16(channels: int, x: Tensor, copies: int) -> Calls:
    out = x.new_empty(x.shape[0], channels)
    weights = _weights(channels, x, copies)
    return [lambda w=w: torch.mm(x, w.T, out=out) for w in weights]  # type: ignore[misc]


def cublas_fp8(channels: int, x: Tensor, copies: int) -> Calls:
    one = torch.ones((), device=x.device)
    return _scaled(channels, x, copies, one, one)


def cublas_fp8_rows(channels: int, x: Tensor, copies: int) -> Calls:
    rows = torch.ones(x.shape[0], 1, device=x.device)
    return _scaled(channels, x, copies, rows, torch.ones(1, channels, device=x.device))


def _scaled(channels: int, x: Tensor, copies: int, a: Tensor, b: Tensor) -> Calls:
    x8 = x.to(torch.float8_e4m3fn)
    weights = [w.to(torch.float8_e4m3fn) for w in _weights(channels, x, copies)]
    kind = torch.bfloat16
    return [lambda w=w: torch._scaled_mm(x8, w.T, a, b, out_dtype=kind) for w in weights]  # type: ignore[misc]


def humming(channels: int, x: Tensor, copies: int, bits: int, group: int, activations: int | None) -> Calls:
    from humming.layer import HummingLayer

    calls: Calls = []
    for weight in _weights(channels, x, copies):
        inputs = {} if activations is None else {"input_config": {"dtype": f"int{activations}"}}
        scheme = {"dtype": f"int{bits}", "group_size": group}
        layer = HummingLayer(channels, x.shape[1], scheme, torch_dtype=torch.bfloat16, **inputs).cuda()
        layer.load_from_unquantized(weight)
        layer.transform()
        calls.append(lambda layer=layer: layer(x))  # type: ignore[misc]
    return calls


def gemlite_w8a8(channels: int, x: Tensor, copies: int) -> Calls:
    from gemlite.helper import A8W8_int8_dynamic

    calls: Calls = []
    for weight in _weights(channels, x, copies):
        linear = torch.nn.Linear(x.shape[1], channels, bias=False, dtype=torch.bfloat16, device="meta")
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        layer = A8W8_int8_dynamic(device="cuda", dtype=torch.bfloat16).from_linear(linear)
        calls.append(lambda layer=layer: layer(x))  # type: ignore[misc]
    return calls


def _weights(channels: int, x: Tensor, copies: int) -> list[Tensor]:
    shape = (channels, x.shape[1])
    return [torch.randn(shape, device=x.device, dtype=torch.bfloat16) for _ in range(copies)]
