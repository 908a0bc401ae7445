"""The quantized linear as the decoder uses it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qspec import numerics
from qspec.catalog import ActivationKernel, GemmKernel, kernels_for
from qspec.errors import InputError, MachineError
from qspec.kernels import launch, reference
from qspec.kernels.generate import library
from qspec.kernels.linear import QuantLinear
from qspec.kernels.packing import PackedLinear
from qspec.kernels.reference import ReferenceWeight
from qspec.models.inputs import Gated, Normed
from tests.kernels.cases import Format, random_input, random_linear, random_transform, relative_error


@pytest.mark.parametrize("rotations", [(), (32,), (32, 32)])
@pytest.mark.parametrize(
    ("fmt", "limit"),
    [
        (Format(w_bits=8, a_bits=8), 0.02),
        (Format(w_bits=8, w_group=64, w_symmetric=False, a_bits=8, a_group=64, a_symmetric=False), 0.02),
        (Format(w_group=64, a_bits=16), 0.15),
        (Format(w_bits=8, a_bits=16), 0.01),
        (Format(w_bits=5, w_group=48, w_symmetric=False, a_bits=16), 0.06),
        (Format(w_bits=6, w_group=24, a_bits=8, a_group=96), 0.04),
    ],
    ids=str,
)
def test_approximates_the_float_linear(fmt: Format, limit: float, rotations: tuple[int, ...]) -> None:
    """Quantizing T(x) and W T^-1 gives x W^T + b but for the rounding, whatever T is."""
    weight, bias, x = torch.randn(48, 192), torch.randn(48), torch.randn(3, 11, 192)
    transform = random_transform(rotations, 192, seed=4)
    stored = weight if transform is None else transform.absorb(weight)
    quantized = numerics.quantize_weight(stored, fmt.scheme().weights)
    kernels = kernels_for(fmt.scheme(), rotations)
    linear = QuantLinear(PackedLinear.from_quantized(quantized, kernels, bias, transform))
    y = linear(x)
    assert y.shape == (3, 11, 48)
    assert relative_error(y, x.double() @ weight.double().T + bias) < limit


def test_what_is_prepared_once_serves_every_linear_of_the_site() -> None:
    transform = random_transform((32, 32), 64, seed=0)
    q, k = (QuantLinear(random_linear(Format(), rows, 64, rows, transform=transform)) for rows in (10, 24))
    x = random_input(5, 64, 0)
    assert q.transform is k.transform
    assert q.kernels.row == k.kernels.row
    assert torch.equal(k.multiply(q.prepare(x)), k(x))


def test_runs_the_reference_on_a_cpu() -> None:
    packed = random_linear(Format(), 10, 64, seed=0)
    linear, x = QuantLinear(packed), random_input(5, 64, 0)
    assert linear.execution == "reference"
    expected = reference.multiply(ReferenceWeight.of(packed), reference.prepare(packed.kernels.row, None, x))
    assert torch.equal(linear(x), expected)


def test_no_other_device_is_taken_for_one_of_them() -> None:
    linear = QuantLinear(random_linear(Format(), 10, 64, seed=0)).to("meta")
    with pytest.raises(MachineError, match="meta"):
        linear(torch.randn(2, 64))


def test_a_change_of_dtype_leaves_stored_scales_alone() -> None:
    linear = QuantLinear(random_linear(Format(w_group=32), 10, 64, seed=0))
    x = random_input(5, 64, 0)
    before = linear(x)
    linear.to(torch.bfloat16)
    assert (linear.scale.dtype, linear.bias.dtype) == (torch.float16, torch.float32)
    assert torch.equal(linear(x), before)


def test_new_weights_are_seen_after_a_move() -> None:
    linear, x = QuantLinear(random_linear(Format(), 10, 64, seed=0)), random_input(5, 64, 0)
    linear(x)
    linear.codes.zero_()
    linear.cpu()
    assert torch.equal(linear(x), linear.bias.expand(5, 10))


def test_copies_and_reads_its_state() -> None:
    linear, x = QuantLinear(random_linear(Format(w_symmetric=False), 10, 64, seed=0)), random_input(5, 64, 0)
    assert torch.equal(copy.deepcopy(linear)(x), linear(x))
    assert set(linear.state_dict()) == {"codes", "scale", "zero", "bias"}
    assert "gemm_w4_asym_a4" in repr(linear)


def test_an_input_of_another_width_is_refused() -> None:
    linear = QuantLinear(random_linear(Format(), 10, 64, seed=0))
    with pytest.raises(InputError, match="32 channels for a linear of 64"):
        linear(torch.randn(2, 32))
    with pytest.raises(InputError, match="128 channels"):
        linear.multiply(QuantLinear(random_linear(Format(), 10, 128, seed=0)).prepare(torch.randn(2, 128)))


@pytest.mark.parametrize("fmt", [Format(), Format(w_group=64, w_symmetric=False, a_bits=16)], ids=str)
def test_a_residual_is_added_to_the_product(fmt: Format) -> None:
    linear = QuantLinear(random_linear(fmt, 24, 128, seed=2))
    prepared = linear.prepare(random_input(6, 128, 2, torch.bfloat16).reshape(2, 3, 128))
    expected = linear.multiply(prepared)
    residual = random_input(24, 6, 3, torch.bfloat16).T.reshape(2, 3, 24)
    apart = torch.zeros(2, 3, 48, dtype=torch.bfloat16)[..., ::2].copy_(residual)
    compiled = torch.compile(linear.multiply, backend="aot_eager", fullgraph=True)
    for one in (residual, apart):
        assert torch.equal(linear.multiply(prepared, one), residual + expected)
        assert torch.equal(compiled(prepared, one), residual + expected)
    for wrong in (residual.float(), residual[:1], residual[..., :8]):
        with pytest.raises(InputError, match=r"for an output torch.bfloat16 \[2, 3, 24\]"):
            linear.multiply(prepared, wrong)


def test_an_empty_batch_stays_empty(tmp_path: Path) -> None:
    linear = QuantLinear(random_linear(Format(), 10, 64, seed=0), tmp_path)
    assert linear(torch.empty(2, 0, 64)).shape == (2, 0, 10)


@pytest.mark.parametrize("fmt", [Format(), Format(w_group=64, w_symmetric=False, a_bits=16)], ids=str)
def test_torch_compile_takes_the_product_as_one_node(fmt: Format) -> None:
    linear = QuantLinear(random_linear(fmt, 24, 128, seed=2))
    prepared = linear.prepare(random_input(6, 128, 2).reshape(2, 3, 128))
    nodes: list[str] = []

    def record(module: torch.fx.GraphModule, _: object) -> object:
        nodes.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module.forward

    found = torch.compile(linear.multiply, backend=record, fullgraph=True)(prepared)
    assert nodes.count("qspec.multiply.default") == 1
    assert torch.equal(found, linear.multiply(prepared))


@pytest.mark.parametrize("rotations", [(), (32, 32)])
@pytest.mark.parametrize("a_symmetric", [True, False])
@pytest.mark.parametrize("source", ["plain", "rmsnorm", "silu_mul", "gelu_tanh_mul"])
def test_torch_compile_takes_the_input_as_one_node(source: str, a_symmetric: bool, rotations: tuple[int, ...]) -> None:
    """One graph for linears with transforms of their own, whatever their inputs are computed of."""
    fmt, rows = Format(a_bits=8, a_symmetric=a_symmetric), random_input(6, 64, 2).reshape(2, 3, 64)
    given = {
        "plain": rows,
        "rmsnorm": Normed(rows, torch.rand(64), 1e-5),
        "silu_mul": Gated(rows, rows.flip(0)),
        "gelu_tanh_mul": Gated(rows, rows.flip(0), "gelu_tanh"),
    }[source]
    nodes: list[str] = []

    def record(module: torch.fx.GraphModule, _: object) -> object:
        nodes.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module.forward

    torch.compiler.reset()
    for seed in (0, 1):
        packed = random_linear(fmt, 24, 64, seed, transform=random_transform(rotations, 64, seed))
        linear = QuantLinear(
            replace(packed, kernels=replace(packed.kernels, row=replace(packed.kernels.row, source=source)))
        )
        expected = linear(given)
        linear.compile(backend=record, fullgraph=True)
        assert torch.equal(linear(given), expected)
    assert nodes.count("qspec.prepare.default") == nodes.count("qspec.multiply.default") == 1


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_few_tokens_leave_room_behind_them(bits: int) -> None:
    """Rows that a product of few tokens reads besides: in memory, and never beyond it."""
    row = ActivationKernel((), bits, None, True, 1.0, source="rmsnorm")
    for tokens in (1, 15, 16, 40):
        results = launch.outputs(row, torch.empty(tokens, 64, dtype=torch.bfloat16))
        values = results["out" if bits == 16 else "codes"]
        assert values.shape == (tokens, 64)
        assert values.is_contiguous()
        assert values.untyped_storage().nbytes() == max(tokens, 16) * 64 * values.element_size()
    module = library(None).module(GemmKernel(4, None, True, 4, None, True))
    memory = torch.arange(20 * 8, dtype=torch.int8).reshape(20, 8)
    assert module.with_rows_behind(memory[:1], 16).shape == (16, 8)
    assert torch.equal(module.with_rows_behind(memory[2:5], 16), memory[2:18])
    assert torch.equal(module.with_rows_behind(memory[15:17], 16), memory[15:20])  # no more than there are
    assert torch.equal(module.with_rows_behind(memory[:17], 16), memory)
    assert torch.equal(module.with_rows_behind(memory[:16], 16), memory[:16])
