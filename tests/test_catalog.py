"""Which kernels exist, their names, and the sentence where none does."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import pytest

from qspec.catalog import ActivationKernel, GemmKernel, LayerKernels, NoKernel, kernels_for, pack_block, planes
from qspec.formats import NUMBER_FORMATS, Clip, Granularity, Scheme, TensorFormat

NO_CLIP = Clip()
CHANNEL, TOKEN = Granularity("channel"), Granularity("token")


def fmt(number: str, granularity: Granularity, symmetric: bool = True, clip: Clip = NO_CLIP) -> TensorFormat:
    return TensorFormat(NUMBER_FORMATS[number], granularity, symmetric, clip)


def group(size: int) -> Granularity:
    return Granularity("group", size)


@pytest.mark.parametrize(
    ("scheme", "rotations", "row", "gemm"),
    [
        (
            Scheme("s", fmt("int4", CHANNEL), fmt("int4", TOKEN)),
            (128, 128),
            "row_rotate_permute_rotate128_int4_token_sym",
            "gemm_w4_sym_a4",
        ),
        (
            Scheme("s", fmt("int4", group(128)), fmt("int4", TOKEN, clip=Clip("ratio", 0.9))),
            (64,),
            "row_rotate64_int4_token_sym_clip0p9",
            "gemm_w4g128_sym_a4",
        ),
        (
            Scheme("s", fmt("int8", CHANNEL, False), fmt("int8", group(64), False)),
            (),
            "row_none_int8_group64_asym",
            "gemm_w8_asym_a8g64_asym",
        ),
        (Scheme("s", fmt("int4", group(128), False)), (), None, "gemm_w4g128_asym_a16"),
        (Scheme("s", fmt("int8", CHANNEL)), (32,), "row_rotate32_float", "gemm_w8_sym_a16"),
        (
            Scheme("s", fmt("int3", group(128))),
            (128, 28),
            "row_rotate_permute_rotate128x28_float",
            "gemm_w3g128_sym_a16",
        ),
        (Scheme("s", fmt("fp8_e4m3", CHANNEL), fmt("fp8_e4m3", TOKEN)), (), "row_none_fp8_e4m3", "gemm_fp8_e4m3_a8"),
        (Scheme("s", fmt("mxfp4", group(32))), (), None, "gemm_mxfp4_a16"),
        (
            Scheme("s", fmt("nvfp4", group(16)), fmt("nvfp4", group(16), clip=Clip("ratio", 0.9))),
            (128,),
            "row_rotate128_nvfp4_clip0p9",
            "gemm_nvfp4_a4",
        ),
    ],
)
def test_kernels_for(scheme: Scheme, rotations: tuple[int, ...], row: str | None, gemm: str) -> None:
    found = kernels_for(scheme, rotations)
    assert (found.row.name if found.row else None) == row
    assert found.gemm.name == gemm


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        (Scheme("s", fmt("fp8_e4m3", group(128))), "weights in fp8_e4m3 per group 128 have no kernel"),
        (Scheme("s", fmt("mxfp4", CHANNEL)), "weights in mxfp4 per channel have no kernel"),
        (Scheme("s", fmt("nvfp4", group(32))), "weights in nvfp4 per group 32 have no kernel"),
        (
            Scheme("s", fmt("nvfp4", group(16)), fmt("mxfp4", group(32))),
            "in mxfp4 have no kernel with weights in nvfp4",
        ),
        (Scheme("s", fmt("int8", CHANNEL), fmt("fp8_e4m3", TOKEN)), "in fp8_e4m3 have no kernel with weights in int8"),
        (Scheme("s", fmt("fp8_e4m3", CHANNEL), fmt("int8", TOKEN)), "in int8 have no kernel with weights in fp8_e4m3"),
        (Scheme("s", fmt("uint4", CHANNEL)), "weights in uint4 have no kernel"),
        (Scheme("s", fmt("int4", CHANNEL), fmt("uint4", TOKEN, False)), "activations in uint4 have no kernel"),
        (Scheme("s", fmt("int4", TOKEN)), "weights per token have no kernel"),
        (Scheme("s", fmt("int4", Granularity("tensor"))), "weights per tensor have no kernel"),
        (Scheme("s", fmt("int4", Granularity("block", 128, 128))), "weights per block 128x128 have no"),
        (Scheme("s", fmt("int4", group(0))), "weights in groups of 0 have no kernel"),
        (Scheme("s", fmt("int4", group(32769))), "weights in groups of 32769 have no kernel; there are 1 to 32768"),
        (Scheme("s", fmt("int4", CHANNEL), fmt("int6", TOKEN)), "activations in 6 bits have no kernel"),
        (Scheme("s", fmt("int4", CHANNEL), fmt("int4", CHANNEL)), "activations per channel have no kernel"),
        (Scheme("s", fmt("int4", CHANNEL), fmt("int4", TOKEN, clip=Clip("mse"))), "not a searched clip"),
        (Scheme("s", fmt("int4", CHANNEL), fmt("int4", TOKEN, clip=Clip("ratio", 0.001))), "clip of 0.001"),
    ],
)
def test_no_kernel_says_why(scheme: Scheme, reason: str) -> None:
    with pytest.raises(NoKernel, match=reason) as caught:
        kernels_for(scheme)
    assert "int2 to int8, uint3 and uint4 weights" in str(caught.value.hint)


def test_every_integer_scheme_has_kernels() -> None:
    """Weights of 2 to 8 bits, per channel or in any group, with every kind of activations and rotations."""
    grains = [None, 1, 24, 32, 48, 96, 100, 128, 192, 448, 4096]
    activations = [None, *((bits, size) for bits in (4, 8) for size in grains)]
    names = set()
    for bits, size, symmetric in product(range(2, 9), grains, (True, False)):
        weights = fmt(f"int{bits}", CHANNEL if size is None else group(size), symmetric)
        for taken in activations:
            operand = (
                None if taken is None else fmt(f"int{taken[0]}", group(taken[1]) if taken[1] else TOKEN, symmetric)
            )
            for rotations in ((), (64,), (128, 128), (128, 148)):
                found = kernels_for(Scheme("s", weights, operand), rotations)
                names.add((found.row and found.row.name, found.gemm.name))
    assert len(names) == 7 * len(grains) * 2 * len(activations) * 4


@pytest.mark.parametrize("bits", range(2, 9))
def test_planes_add_up(bits: int) -> None:
    cut = planes(bits)
    assert list(cut) == sorted(cut, reverse=True)
    assert sum(cut) == (0 if bits == 8 else bits)
    assert set(cut) <= {1, 2, 4}


@pytest.mark.parametrize("rotations", [(96,), (0,), (256,), (96, 64), (64, 1), (64, 257), (64, 64.0), (64, 64, 64)])
def test_no_kernel_for_these_rotations(rotations: tuple[int, ...]) -> None:
    with pytest.raises(NoKernel):
        kernels_for(Scheme("s", fmt("int4", CHANNEL), fmt("int4", TOKEN)), rotations)


@pytest.mark.parametrize(
    "fields",
    [
        ((), 4, None, True, float("nan")),
        ((), 4, None, True, 1),
        ((), 4, None, 1, 1.0),
        ((), True, None, True, 1.0),
        ((), 4, "128", True, 1.0),
        ((), 4, 128.0, True, 1.0),
        ((), 16, None, True, 1.0),
        ("x); import os; (", 4, None, True, 1.0),
        ((), 4, None, True, 1.0, "plain", "fp4"),
        ((), 4, 32, True, 1.0, "plain", "nvfp4"),
        ((), 8, None, False, 1.0, "plain", "fp8_e4m3"),
    ],
)
def test_only_checked_values_make_a_kernel(fields: tuple[object, ...]) -> None:
    """A kernel's fields become source text, so nothing else may get in."""
    with pytest.raises(NoKernel):
        ActivationKernel(*fields)  # type: ignore[arg-type]


def test_names_are_unique() -> None:
    kernels = [
        GemmKernel(w, wg, ws, a, ag, asym)
        for w in range(2, 9)
        for wg in (None, 32, 128)
        for ws in (True, False)
        for a in (4, 8)
        for ag in (None, 32, 128)
        for asym in (True, False)
    ]
    assert len({kernel.name for kernel in kernels}) == len(kernels)
    clips = {ActivationKernel((), 4, None, True, clip).name for clip in (1.0, 0.9, 0.95, 0.09)}
    assert len(clips) == 4


@pytest.mark.parametrize(("columns", "block"), [(128, 128), (4096, 128), (192, 64), (96, 32), (32, 32), (18944, 128)])
def test_pack_block(columns: int, block: int) -> None:
    assert pack_block(columns) == block


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        (48, "not a multiple of 32"),
        (0, "not a multiple of 32"),
        (65536, "more than 32768"),
        (192, "the weight group, 128"),
    ],
)
def test_widths_that_no_kernel_takes(columns: int, reason: str) -> None:
    kernels = LayerKernels(None, GemmKernel(4, 128, True, 16, None, True))
    with pytest.raises(NoKernel, match=reason):
        kernels.check(columns, "blocks[0].mlp.down")


def test_the_catalogue_needs_no_torch() -> None:
    code = "import sys, qspec.catalog; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
