"""The generated kernels under Triton's interpreter: integers bit for bit, floats by relative norm.

Triton decides to interpret when it is imported, so `test_interpreted.py` runs these in processes of
their own: TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted.py. The interpreter computes
bf16 wrongly and rounds to it by truncation: what needs bf16 is tested on a GPU.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qspec import resources
from qspec.catalog import MEASURES, Activation, ActivationKernel
from qspec.errors import InputError
from qspec.kernels import experts, launch, reference, tuned
from qspec.kernels.experts import QuantExperts
from qspec.kernels.generate import KernelLibrary, render
from qspec.kernels.launch import PlacedTransform
from qspec.kernels.reference import PreparedInput, ReferenceWeight
from qspec.models.commit import EVERY, NONE, Sure, commit
from qspec.models.inputs import Gated
from qspec.models.likeliest import Measure
from qspec.models.operations import AttentionContext, KeyValues, rotate_and_keep
from qspec.transforms import InputTransform
from tests.kernels.cases import (
    FLOAT_WEIGHTS,
    FLOATS,
    INTEGER,
    ROWS,
    WEIGHT_ONLY,
    Format,
    codes_that_differ,
    dequantized_input,
    dequantized_product,
    exact_input,
    largest_codes,
    mixture_of,
    poisoned_memory,
    random_choice,
    random_experts,
    random_gates,
    random_given,
    random_input,
    random_linear,
    random_transform,
    relative_error,
    rounded_weights,
    scale_tolerance,
    transformed,
    widths,
)

EXPERTS = (  # formats of mixtures
    Format(w_group=32, a_bits=16),
    Format(w_group=64, w_symmetric=False, a_bits=8),
    FLOATS[0],
)
SHAPES = ((5, 33), (17, 65), (1, 70), (40, 3))  # tokens, output channels: none a multiple of a tile


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    assert os.environ.get("TRITON_INTERPRET") == "1"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
        yield


@pytest.mark.parametrize("fmt", INTEGER, ids=str)
def test_integer_product_equals_the_reference(fmt: Format) -> None:
    library = KernelLibrary()
    for seed, (columns, (tokens, channels)) in enumerate(zip(widths(fmt), SHAPES, strict=True)):
        packed = random_linear(fmt, channels, columns, seed, bias=tokens != 5)
        prepared = reference.prepare(packed.kernels.row, None, random_input(tokens, columns, seed))
        expected = reference.multiply(ReferenceWeight.of(packed), prepared)
        assert torch.equal(launch.multiply(library, packed, prepared), expected)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_largest_sums_are_exact(symmetric: bool) -> None:
    fmt = Format(w_bits=8, w_symmetric=symmetric, a_bits=8, a_symmetric=symmetric)
    packed, prepared = largest_codes(fmt, 32768)
    expected = reference.multiply(ReferenceWeight.of(packed), prepared)
    assert torch.equal(launch.multiply(KernelLibrary(), packed, prepared), expected)


def test_integer_product_rounds_to_the_input_dtype() -> None:
    packed = random_linear(Format(), 40, 128, seed=0)
    prepared = reference.prepare(packed.kernels.row, None, random_input(9, 128, 0, torch.float16))
    found = launch.multiply(KernelLibrary(), packed, prepared)
    assert found.dtype == torch.float16
    assert torch.equal(found, reference.multiply(ReferenceWeight.of(packed), prepared))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("fmt", [*INTEGER[::7], *WEIGHT_ONLY[::7]], ids=str)
def test_a_residual_is_added_to_the_rounded_product(fmt: Format, dtype: torch.dtype) -> None:
    """Its rows need not follow one another."""
    library = KernelLibrary()
    for seed, (columns, (tokens, channels)) in enumerate(zip(widths(fmt), SHAPES, strict=True)):
        packed = random_linear(fmt, channels, columns, seed, bias=tokens != 5)
        prepared = reference.prepare(packed.kernels.row, None, random_input(tokens, columns, seed, dtype))
        residual = random_input(tokens, 2 * channels, seed, dtype)[:, channels:]
        found = launch.multiply(library, packed, prepared, residual=residual)
        assert torch.equal(found, residual + launch.multiply(library, packed, prepared))
        if prepared.scale is not None:
            assert torch.equal(found, reference.multiply(ReferenceWeight.of(packed), prepared, residual))


@pytest.mark.filterwarnings("ignore:overflow")  # of exp(-gate), by which silu(gate) is 0
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("fmt", "activation"),
    [
        *((fmt, "silu") for fmt in (*INTEGER[::5], *WEIGHT_ONLY[::5], *FLOATS[1:], FLOAT_WEIGHTS[0])),
        (INTEGER[0], "gelu_tanh"),
    ],
    ids=str,
)
def test_a_gated_product_is_that_of_a_product_and_a_row_kernel(
    fmt: Format, activation: Activation, dtype: torch.dtype
) -> None:
    """In float32 up to the last bits of numpy's sums and exponentials, which differ by where a number lies."""
    library = KernelLibrary()
    row = ActivationKernel((), 16, None, True, 1.0, source=f"{activation}_mul")
    for seed, (columns, (tokens, channels)) in enumerate(zip(widths(fmt), ((5, 40), (17, 72), (1, 8)), strict=False)):
        gated, plain = random_gates(fmt, channels, columns, seed, bias=tokens != 5, activation=activation)
        prepared = reference.prepare(gated.kernels.row, None, random_input(tokens, columns, seed, dtype))
        gate, up = launch.multiply(library, plain, prepared).chunk(2, dim=1)
        found = launch.multiply(library, gated, prepared)
        assert found.shape == (tokens, channels)
        expected = launch.prepare(library, row, None, Gated(gate, up, activation)).values
        assert relative_error(found, expected) <= (1e-6 if dtype == torch.float32 else 0)
        if prepared.scale is not None and fmt.number == "int":
            expected = reference.multiply(ReferenceWeight.of(gated), prepared)
            assert relative_error(found, expected) < (1e-5 if dtype == torch.float32 else 1e-3)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(("bias", "activation"), [(True, "silu"), (False, "gelu_tanh")])
def test_a_gated_product_of_cublas(bias: bool, activation: Activation) -> None:
    library = KernelLibrary()
    row = ActivationKernel((), 16, None, True, 1.0, source=f"{activation}_mul")
    gated, plain = random_gates(WEIGHT_ONLY[2], 72, 384, 5, bias, activation=activation)
    prepared = launch.prepare(library, None, None, random_input(40, 384, 5, torch.float16))
    gate, up = launch.multiply(library, plain, prepared, tuned.CUBLAS).chunk(2, dim=1)
    expected = launch.prepare(library, row, None, Gated(gate, up, activation)).values
    assert torch.equal(launch.multiply(library, gated, prepared, tuned.CUBLAS), expected)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
@pytest.mark.parametrize("fmt", [*WEIGHT_ONLY, *FLOAT_WEIGHTS], ids=str)
def test_weight_only_product_is_near_float64(fmt: Format, dtype: torch.dtype, limit: float) -> None:
    library = KernelLibrary()
    for seed, (columns, (tokens, channels)) in enumerate(zip(widths(fmt), SHAPES, strict=True)):
        packed = random_linear(fmt, channels, columns, seed, bias=tokens != 5)
        x = random_input(tokens, columns, seed, dtype)
        found = launch.multiply(library, packed, launch.prepare(library, None, None, x))
        assert found.dtype == dtype
        assert relative_error(found, dequantized_product(packed, x)) < limit


@pytest.mark.parametrize("fmt", [*WEIGHT_ONLY, *FLOAT_WEIGHTS], ids=str)
def test_weights_for_cublas_are_rounded_once(fmt: Format) -> None:
    """Of rows of the identity the product is the weights themselves: one term of a sum is not zero."""
    library = KernelLibrary()
    for seed, (columns, (_, channels)) in enumerate(zip(widths(fmt), SHAPES, strict=True)):
        packed = random_linear(fmt, channels, columns, seed, bias=False)
        prepared = launch.prepare(library, None, None, torch.eye(columns, dtype=torch.float16))
        found = launch.multiply(library, packed, prepared, tuned.CUBLAS)
        assert torch.equal(found.T, rounded_weights(packed, torch.float16))


@pytest.mark.parametrize("bias", [True, False])
def test_cublas_product_is_near_float64(bias: bool) -> None:
    library = KernelLibrary()
    packed = random_linear(WEIGHT_ONLY[2], 70, 384, 5, bias)
    prepared = launch.prepare(library, None, None, random_input(40, 384, 5, torch.float16))
    found = launch.multiply(library, packed, prepared, tuned.CUBLAS)
    assert relative_error(found, dequantized_product(packed, prepared.values)) < 1e-3
    residual = random_input(40, 70, 6, torch.float16)
    assert torch.equal(launch.multiply(library, packed, prepared, tuned.CUBLAS, residual), residual + found)


def test_floats_of_32_bits_are_not_multiplied_by_rounded_weights() -> None:
    library = KernelLibrary()
    packed = random_linear(WEIGHT_ONLY[0], 33, 96, 6)
    prepared = launch.prepare(library, None, None, random_input(5, 96, 6))
    found = launch.multiply(library, packed, prepared, tuned.CUBLAS)
    assert torch.equal(found, launch.multiply(library, packed, prepared))


def test_rows_are_sorted_by_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each expert's pairs from a tile on, in the order of tokens."""
    library, rows = KernelLibrary(), 16
    monkeypatch.setattr(experts, "row_tile", lambda *_: rows)
    monkeypatch.setattr(library.module(experts.SORT), "rank_tiles", lambda _: {"SPAN": 32})
    row = random_linear(INTEGER[5], 8, 128, 0).kernels.row
    for tokens, chosen in ((1, 3), (45, 2)):
        prepared = reference.prepare(row, None, random_input(tokens, 128, tokens))
        choice, _ = random_choice(tokens, 5, chosen, tokens)
        found, where = experts.sort_rows(library, INTEGER[5].gemm(), prepared, choice, 5)
        first, of_tiles = 0, []
        for expert in range(5):
            token, slot = (choice == expert).nonzero(as_tuple=True)
            places = where.place[token, slot].long()
            assert places.tolist() == list(range(first, first + len(token)))
            of_tiles += [(expert, min(rows, len(token) - row)) for row in range(0, len(token), rows)]
            first = rows * len(of_tiles)
            expected = reference.rows_of(prepared, token)
            for name in ("values", "scale", "zero"):
                ours, theirs = getattr(found, name), getattr(expected, name)
                assert torch.equal(ours[places] if name == "values" else ours[:, places], theirs)
        assert where.tiles[: 1 + 2 * len(of_tiles)].tolist() == [len(of_tiles), *chain(*of_tiles)]
        assert where.total >= first
        assert where.total == found.values.shape[0]


def mixed(library: KernelLibrary, mixture: QuantExperts, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """What the kernels give."""
    prepared = launch.prepare(library, mixture.gate_up.kernels.row, None, x)
    ordered, where = experts.sort_rows(library, mixture.gate_up.kernels.gemm, prepared, chosen, mixture.experts)
    inner = experts.multiply(library, mixture.gate_up.packed(), mixture.experts, ordered, where)
    prepared = launch.prepare(library, mixture.down.kernels.row, None, inner)
    y = experts.multiply(library, mixture.down.packed(), mixture.experts, prepared, where)
    return experts.sum_rows(library, y, where, weights)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # rows of no pair hold anything
@pytest.mark.parametrize(
    ("fmt", "activation"), [*((fmt, "silu") for fmt in EXPERTS), (EXPERTS[1], "gelu_tanh")], ids=str
)
def test_a_mixture_of_experts_equals_the_reference(fmt: Format, activation: Activation) -> None:
    """But for exponentials, and float sums."""
    library = KernelLibrary()
    mixture = mixture_of(*random_experts(fmt, 3, 128, 64, 1, bias=fmt.a_bits == 8), activation)
    for tokens in (1, 20):
        x = random_input(tokens, 128, tokens)
        chosen, weights = random_choice(tokens, 3, 2, tokens)
        found = mixed(library, mixture, x, chosen, weights)
        assert relative_error(found, mixture(x, chosen, weights)) < 1e-5


def test_a_grouped_integer_product_equals_the_reference() -> None:
    """Bit for bit, with zero points, biases, groups, and channels that no tile divides.

    Tiles have 32 rows, or 8; nothing is stored behind the last one.
    """
    library = KernelLibrary()
    for (seed, fmt), tokens in product(enumerate(INTEGER[3:15:3]), (20, 5)):
        channels, columns = 36, widths(fmt)[1]
        parts = [random_linear(fmt, channels, columns, 10 * seed + expert) for expert in range(3)]
        stack = experts.stacked(parts)
        prepared = reference.prepare(parts[0].kernels.row, None, random_input(tokens, columns, seed))
        chosen, _ = random_choice(tokens, 3, 2, seed)
        ordered, where = experts.sort_rows(library, stack.kernels.gemm, prepared, chosen, 3)
        y = experts.multiply(library, stack, 3, ordered, where)
        assert where.rows == (32 if tokens == 20 else 8)
        assert y[where.live :].isnan().all()
        for expert, part in enumerate(parts):
            token, slot = (chosen == expert).nonzero(as_tuple=True)
            if not len(token):
                continue
            expected = reference.multiply(ReferenceWeight.of(part), reference.rows_of(prepared, token))
            assert torch.equal(y[where.place[token, slot].long()], expected)


def prepared_by(row: ActivationKernel, transform: InputTransform | None, x: Tensor) -> PreparedInput:
    placed = None if transform is None else PlacedTransform.of(transform, x.device)
    return launch.prepare(KernelLibrary(), row, placed, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("row", [row for row in ROWS if not row.rotations], ids=lambda row: row.name)
def test_row_kernel_without_transform_equals_the_reference(row: ActivationKernel, dtype: torch.dtype) -> None:
    unit = row.group or 32
    last = -(-1056 // unit) * unit  # several tiles and a tail
    for tokens, columns in ((1, unit), (5, unit * 3), (17, last)):
        x = random_input(tokens, columns, tokens, dtype)
        found, expected = prepared_by(row, None, x), reference.prepare(row, None, x)
        assert found.scale is not None
        assert expected.scale is not None
        assert torch.equal(found.scale, expected.scale)
        assert found.values.dtype == expected.values.dtype
        assert torch.equal(found.values.float(), expected.values.float())
        assert (found.zero is None) == row.symmetric
        if found.zero is not None and expected.zero is not None:
            assert torch.equal(found.zero, expected.zero)


@pytest.mark.filterwarnings("ignore:overflow")  # of exp(-gate), by which f(gate) is 0
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("rotations", "source"),
    [*product([(), (32,), (32, 12)], ["rmsnorm", "silu_mul"]), ((), "gelu_tanh_mul")],
)
def test_row_kernel_computes_its_input_as_the_reference(
    rotations: tuple[int, ...], source: str, dtype: torch.dtype
) -> None:
    """Sums and exponentials are the device's own: a code may differ at a tie, and the error is the reference's."""
    row = ActivationKernel(rotations, 8, None, True, 1.0, source=source)
    for tokens, columns in ((1, 96), (5, 192), (3, 96 * 13)):  # the last with a tail
        given = random_given(source, tokens, columns, tokens, dtype)
        transform = random_transform(rotations, columns, tokens)
        placed = None if transform is None else PlacedTransform.of(transform, torch.device("cpu"))
        found = launch.prepare(KernelLibrary(), row, placed, given)
        expected = reference.prepare(row, transform, given)
        assert found.scale is not None
        assert expected.scale is not None
        rounding = 1e-5 if dtype == torch.float32 else 2e-3  # a float16 may round the other way
        assert torch.allclose(found.scale, expected.scale, rtol=rounding, atol=0)
        assert codes_that_differ(found, expected) < 4e-3 + 1.5 / found.values.numel()
        exact = exact_input(given) if transform is None else transformed(transform, exact_input(given))
        errors = [relative_error(dequantized_input(p), exact) for p in (found, expected)]
        assert errors[0] < 1.01 * errors[1]


def test_row_kernel_of_another_input_is_refused() -> None:
    row = ActivationKernel((), 8, None, True, 1.0, source="rmsnorm")
    with pytest.raises(InputError, match="computes rmsnorm"):
        launch.prepare(KernelLibrary(), row, None, random_input(2, 64, 0))


@pytest.mark.parametrize("row", [row for row in ROWS if row.rotations], ids=lambda row: row.name)
def test_row_kernel_with_transform_is_near_float64(row: ActivationKernel) -> None:
    unit = math.lcm(row.group or 1, *row.rotations)
    for tokens, columns in ((1, unit), (5, unit * 3), (17, unit)):
        transform = random_transform(row.rotations, columns, tokens)
        assert transform is not None
        x = random_input(tokens, columns, tokens, torch.bfloat16)
        found, expected = prepared_by(row, transform, x), reference.prepare(row, transform, x)
        exact = transformed(transform, x)
        assert found.scale is not None
        assert expected.scale is not None
        assert torch.allclose(found.scale, expected.scale, rtol=scale_tolerance(row, x.dtype), atol=0)
        assert codes_that_differ(found, expected) < 2e-3 + 1.5 / x.numel()
        errors = [relative_error(dequantized_input(p), exact) for p in (found, expected)]
        assert errors[0] < 1.01 * errors[1]


@pytest.mark.parametrize(
    ("rotations", "dtype", "limit"),
    [
        *product([(32,), (32, 32), (32, 12)], [torch.float32], [1e-5]),
        *product([(32,), (32, 32), (32, 12)], [torch.float16, torch.bfloat16], [1e-2]),
        *product([(64, 2), (16, 28), (32, 96), (64, 148), (128, 256)], [torch.float32], [1e-5]),
    ],
)
def test_transform_alone_is_near_float64(rotations: tuple[int, ...], dtype: torch.dtype, limit: float) -> None:
    row = ActivationKernel(rotations, 16, None, True, 1.0)
    columns = math.lcm(*rotations)
    transform = random_transform(rotations, columns, seed=3)
    x = random_input(9, columns, 3, dtype)
    found = prepared_by(row, transform, x)
    assert found.values.dtype == dtype
    assert transform is not None
    assert relative_error(found.values, transformed(transform, x)) < limit


@pytest.mark.parametrize("fmt", FLOATS, ids=str)
def test_rows_of_a_float_format_equal_the_reference(fmt: Format) -> None:
    row = random_linear(fmt, 8, 96, 0).kernels.row
    assert row is not None
    for (tokens, columns), dtype in product([(1, 32), (5, 96), (17, 1248)], [torch.float32, torch.bfloat16]):
        x = random_input(tokens, columns, tokens, dtype)
        x[-1, :: columns // 7] = -0.0
        found, expected = prepared_by(row, None, x), reference.prepare(row, None, x)
        for name in ("values", "scale", "unit"):
            ours, theirs = getattr(found, name), getattr(expected, name)
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("rotations", [(32,), (32, 12)])
@pytest.mark.parametrize("fmt", FLOATS, ids=str)
def test_rotated_rows_of_a_float_format_are_as_near_as_the_reference(fmt: Format, rotations: tuple[int, ...]) -> None:
    plain = random_linear(fmt, 8, 96, 0).kernels.row
    assert plain is not None
    row = replace(plain, rotations=rotations)
    for tokens, columns, dtype in ((1, 96, torch.float32), (5, 288, torch.bfloat16), (17, 1248, torch.bfloat16)):
        x, transform = random_input(tokens, columns, tokens, dtype), random_transform(rotations, columns, tokens)
        assert transform is not None
        found, expected = prepared_by(row, transform, x), reference.prepare(row, transform, x)
        exact = transformed(transform, x)
        ours, theirs = (dequantized_input(prepared, fmt.number) for prepared in (found, expected))
        assert relative_error(ours, exact) < 1.01 * relative_error(theirs, exact)
        assert relative_error(ours, theirs) < (1e-6 if dtype == torch.float32 else 0.03)  # a code may differ at a tie


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float16, 1e-3)])
@pytest.mark.parametrize("fmt", FLOATS, ids=str)
def test_product_of_a_float_format_is_near_float64(fmt: Format, dtype: torch.dtype, limit: float) -> None:
    for seed, (columns, (tokens, channels)) in enumerate(zip((32, 96, 288, 1248), SHAPES, strict=True)):
        packed = random_linear(fmt, channels, columns, seed, bias=tokens != 5)
        prepared = reference.prepare(packed.kernels.row, None, random_input(tokens, columns, seed, dtype))
        exact = dequantized_product(packed, dequantized_input(prepared, fmt.number))
        ours = launch.multiply(KernelLibrary(), packed, prepared)
        for y in (ours, reference.multiply(ReferenceWeight.of(packed), prepared)):
            assert y.dtype == dtype
            assert relative_error(y, exact) < limit


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("fmt", FLOATS, ids=str)
def test_nan_in_a_float_format_never_becomes_a_plausible_number(fmt: Format, bad: float) -> None:
    packed, x = random_linear(fmt, 8, 64, seed=0, bias=False), random_input(3, 64, 0)
    x[2, 5] = bad
    library = KernelLibrary()
    y = launch.multiply(library, packed, launch.prepare(library, packed.kernels.row, None, x))
    assert torch.isfinite(y[:2]).all()
    assert not torch.isfinite(y[2]).any()


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group", [None, 32])
def test_nan_never_becomes_a_plausible_number(group: int | None, symmetric: bool) -> None:
    fmt = Format(w_bits=8, a_bits=8, a_group=group, a_symmetric=symmetric)
    packed = random_linear(fmt, 8, 64, seed=0, bias=False)
    for bad in (float("nan"), float("inf")):
        x = random_input(3, 64, 0)
        x[2, 5] = bad
        library = KernelLibrary()
        y = launch.multiply(library, packed, launch.prepare(library, packed.kernels.row, None, x))
        assert torch.isfinite(y[:2]).all()
        assert not torch.isfinite(y[2]).any()


def test_no_tokens_give_no_rows() -> None:
    packed = random_linear(Format(), 8, 64, seed=0)
    library = KernelLibrary()
    prepared = launch.prepare(library, packed.kernels.row, None, torch.empty(2, 0, 64))
    y = launch.multiply(library, packed, prepared)
    assert y.shape == (2, 0, 8)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "queries", "keys", "width"),
    [(1, 4, 2, 5, 70, 64), (2, 4, 4, 33, 130, 64), (2, 2, 1, 16, 64, 128), (1, 1, 1, 1, 520, 64)],
)
def test_attention_of_few_queries_is_near_float64(
    batch: int, heads: int, kv_heads: int, queries: int, keys: int, width: int, masked: bool
) -> None:
    sizes = ((queries, heads), (keys, kv_heads), (keys, kv_heads))
    q, k, v = (torch.randn(batch, tokens, h, width, dtype=torch.float16).transpose(1, 2) for tokens, h in sizes)
    mask = torch.rand(batch, 1, 1, keys) > 0.4 if masked else None
    if mask is not None:
        mask[..., : keys // 2] = False  # whole programs without a real token
        mask[..., -1] = True
    found = launch.attend(KernelLibrary(), q, k, v, mask)
    shared = heads // kv_heads
    scores = q.double() @ k.double().repeat_interleave(shared, 1).transpose(2, 3) / math.sqrt(width)
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    expected = scores.softmax(-1) @ v.double().repeat_interleave(shared, 1)
    assert found.dtype == torch.float16
    assert relative_error(found, expected) < 1e-3


@pytest.mark.parametrize("kept", ["nothing", "all", "a part", "places"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("sizes", "shared"),
    [
        ((1, 4, 4, 5, 64), True),
        ((2, 2, 1, 4, 128), False),
        ((2, 33, 3, 4, 128), True),
    ],  # 33 heads: two programs a token
)
def test_rotary_positions_are_the_decoders_bits(
    sizes: tuple[int, ...], shared: bool, dtype: torch.dtype, kept: str
) -> None:
    """q, k and v are parts of longer rows; the tables are one for all sequences, or one for each."""
    batch, heads, groups, tokens, width = sizes
    whole = torch.randn(batch, tokens, heads + 2 * groups, width).to(dtype)
    q, k, v = (part.transpose(1, 2) for part in whole.split((heads, groups, groups), dim=2))
    angles = 7 * torch.rand(1 if shared else batch, 1, tokens, width // 2)
    angles = torch.cat((angles, angles), dim=-1)
    chosen = {"a part": slice(3, 3 + tokens), "places": torch.tensor([6, 2, 0, 7, 7])[:tokens]}.get(kept, slice(None))
    if kept == "places" and tokens == 5:
        whole[:, 4] = whole[:, 3]  # a place that is given twice holds the same twice
        angles[:, :, 4] = angles[:, :, 3]
    length = tokens if kept == "all" else 9
    found = []
    for rotate in (launch_rotate, rotate_and_keep):
        room = None if kept == "nothing" else KeyValues(*torch.full((2, batch, groups, length, width), 3.0).to(dtype))
        context = AttentionContext(angles.cos(), angles.sin(), None, chosen, room)
        found.append(rotate(q, k, v, context))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def launch_rotate(q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> tuple[Tensor, Tensor, Tensor]:
    return launch.rotate_and_keep(KernelLibrary(), q, k, v, context)


@pytest.mark.parametrize("measure", MEASURES)
def test_the_likeliest_token_and_its_confidence(measure: Measure) -> None:
    """Against float64 over two and a half programs' logits: equal logits within a program and across two, ids that are
    no token (the largest logit of a row, and all of a program's), logits far apart."""
    logits = 3 * torch.randn(5, 20000, dtype=torch.float32)
    logits[1, [9, 40, 17000]] = 20.0
    logits[2, 19999] = 30.0
    logits[3] = -80.0 + 1e-3 * logits[3]
    logits[4, 5] = 300.0
    absent = torch.zeros(20000, dtype=torch.bool)
    absent[8192:16384] = absent[19999] = True
    library = KernelLibrary()
    for barred in (None, absent):
        finite = torch.tensor(True)
        tokens, confidence = launch.likeliest(library, logits.view(5, 1, -1), barred, finite, measure)
        rows = logits.double() if barred is None else logits.double().masked_fill(barred, -math.inf)
        p = rows.softmax(-1)
        best = p.sort(-1, descending=True).values
        wanted = {
            "probability": best[:, 0],
            "margin": best[:, 0] - best[:, 1],
            "entropy": torch.where(p > 0, p * p.log(), 0.0).sum(-1),
        }[measure]
        assert tokens.tolist() == [[row.tolist().index(max(row.tolist()))] for row in rows]
        torch.testing.assert_close(confidence.double()[:, 0], wanted, rtol=2e-5, atol=1e-6)
        assert bool(finite)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_is_noted(bad: float) -> None:
    """Also of an id that is no token, as float32 logits note it."""
    logits = torch.randn(3, 9000)
    logits[1, 8999] = bad
    absent = torch.zeros(9000, dtype=torch.bool)
    absent[8999] = True
    for barred in (None, absent):
        finite = torch.tensor(True)
        launch.likeliest(KernelLibrary(), logits, barred, finite, "probability")
        assert not bool(finite)


@pytest.mark.parametrize(
    ("size", "dtype"), [(1, torch.float64), (5, torch.float32), (32, torch.float32), (70, torch.float64)]
)
def test_what_is_committed_is_torchs(size: int, dtype: torch.dtype) -> None:
    """Equal confidences, some -inf or NaN, of rows with few masks, with none, and with a mask among what is offered."""
    mask, values = 9, torch.tensor([0.0, 0.25, 0.5, 0.75, 0.9, 1.0, -math.inf])
    library = KernelLibrary()
    for count, sure in product((0, 3, 99), (NONE, Sure(0.9), Sure(1.0, 1.7), EVERY)):
        ids, places = torch.randint(0, 9, (4, size + 12)), 3 + torch.randperm(size + 5)[:size]
        ids[:3] = torch.where(torch.rand(3, size + 12) < 0.8, mask, ids[:3])
        tokens = torch.randint(0, 10, (4, size))
        confidence = values[torch.randint(0, 7, (4, size))].to(dtype)
        confidence[2, size // 2] = math.nan
        share, ours = torch.tensor(count), ids.clone()
        expected = commit(ids, places, tokens, confidence, share, mask, sure)
        found = launch.commit(library, ours, places, (tokens, confidence), share, mask, sure)
        assert torch.equal(ours, ids)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("fmt", [INTEGER[0], WEIGHT_ONLY[0], FLOATS[0]], ids=str)
def test_an_epilogue_is_one_device_function(fmt: Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """max(y, 0) in `store_tile`, as CONTRIBUTING shows it, reaches the GEMMs of all three kinds, behind the bias."""
    columns, tokens, channels = widths(fmt)[0], 5, 33
    packed = random_linear(fmt, channels, columns, 0)
    prepared = reference.prepare(packed.kernels.row, None, random_input(tokens, columns, 0))
    plain = launch.multiply(KernelLibrary(), packed, prepared)
    home = Path(shutil.copytree(resources.codegen(), tmp_path / "codegen"))
    file, line = home / "device" / "epilogue.py", "    dtype: tl.constexpr = out.data.dtype.element_ty\n"
    text = file.read_text()
    assert text.count(line) == 1
    file.write_text(text.replace(line, f"    y = tl.maximum(y, 0.0)\n{line}"))
    monkeypatch.setattr(resources, "codegen", lambda: home)
    render.cache_clear()
    try:
        found = launch.multiply(KernelLibrary(), packed, prepared)
    finally:
        render.cache_clear()
    assert (plain < 0).any()
    assert torch.equal(found, plain.clamp(min=0))
