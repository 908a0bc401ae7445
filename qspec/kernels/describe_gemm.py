"""What the top of a GEMM's file says: formula, operands and their layout, and how it is computed."""

from __future__ import annotations

from qspec.catalog import INTEGER, GemmKernel, planes
from qspec.kernels.describe_rows import ACTIVATIONS
from qspec.kernels.gemm_sizes import GemmSizes

COLUMN = 19  # where the description of an operand starts

EXACT_INTEGERS = """\
The sums t are int32 and exact; the float32 operations after them are not fused and come in the order
written, so that every device gives the same bits. A program computes a tile of Y^T: the weights are
the first operand of the product."""
EXACT_FLOATS = """\
Products are exact, their sums float32 as the tensor cores make them. A program computes a tile of Y^T: the
weights are the first operand of the product."""
NATIVE_PAIRS = """\
NATIVE, from compute capability 10.0 on: the tensor cores take codes and scales as they are. Elsewhere both
are multiplied first, which is exact in bfloat16, and the products are those of OPERAND."""
NATIVE_FP8 = """\
NATIVE, from compute capability 8.9 on: the tensor cores take the codes as they are. Elsewhere they become
float16, which is exact."""
CUBLAS_FP8 = """\
With the option CUBLAS, where Y is bfloat16 on such a GPU, cuBLAS multiplies; b is added to what it rounded."""
CUBLAS_DENSE = """\
With the option CUBLAS, or by itself from so many tokens on that it is faster, and where x has 16 bits, weights
are written down in x's dtype, {rounded} rounded once, and cuBLAS multiplies; b is rounded to that dtype
too. This takes 2 N K bytes while a call lasts."""
GATED = """\
Of the N channels every 16 are 8 of gate and the same 8 of up, in turn. Where Y would be [M, N], it is

    {gate}(gate) up [M, N/2],    {formula}

of gate and up rounded to the dtype of out, as {gate}(gate) is, and its product with up."""
EXPERTS = """\
W has the `columns` channels of one expert behind those of another, and N counts those of all. Rows of X are sorted by
expert (`experts_sort`): tile i of BLOCK_M of them, of tiles[0], meets the channels of expert tiles[1 + i], and Y has
these channels only. Rows of X behind the last of an expert are multiplied too, and what they give is of no use."""
HOPPER = """\
On compute capability 9.0 a warp-specialized kernel runs{where}. Its load partition, one warp, has
TMA bring stages of K_BLOCKS blocks of 128 channels, STAGES of them in flight. One to three MMA partitions, a warpgroup
each, multiply them: 64 output channels each, or, as K_SLICES, every n-th stage of the same 64; the
first slice adds the sums of the others. CTAS_PER_SM CTAs fit on a multiprocessor, and each takes tiles in turn. SPLIT
units share the channels of a tile; each writes its partial sums, and the last to come adds them, floats in their order.
Weights are loaded before the kernel ahead has ended: they must not be what that kernel writes. A weight's GEMMs
must not run on two streams at once: they count their units in one place."""


def describe_gemm(kernel: GemmKernel) -> str:
    """Paragraphs, the kernel's name first."""
    if kernel.activation_bits == 16:
        body = _weight_only(kernel)
    elif kernel.number == INTEGER:
        body = _integers(kernel)
    else:
        body = _floats(kernel)
    return "\n\n".join([kernel.name, *body])


def _integers(kernel: GemmKernel) -> list[str]:
    qa, qw = _code("A[m, k]", kernel.activation_symmetric), _code("W[n, k]", kernel.weight_symmetric)
    step = GemmSizes.of(kernel).step
    if step:
        in_step = " sA[m]" * bool(kernel.activation_group) + " sW[n]" * bool(kernel.weight_group)
        over_all = "sA[m] " * (not kernel.activation_group) + "sW[n] " * (not kernel.weight_group)
        formula = [
            f"    t[m, n] = sum of {qa} {qw} over the {step} channels k of a step",
            f"    y[m, n] = {over_all}(sum over the steps of t[m, n]{in_step}) + b[n]",
        ]
    else:
        formula = [f"    t[m, n] = sum over k of {qa} {qw}", "    y[m, n] = t[m, n] sA[m] sW[n] + b[n]"]
    groups = _groups(kernel.activation_group)
    operands = [
        _operand("activations", "int8 [M, K]"),
        _operand("activation_scale", f"float32 [{groups}, M]"),
        *([] if kernel.activation_symmetric else [_operand("activation_zero", f"int8 [{groups}, M]")]),
    ]
    return [
        "Y [M, N] = X W^T of quantized X [M, K] and W [N, K], with exact integer sums.",
        f"int{kernel.activation_bits} activations {_share(kernel.activation_group, 'token')}, "
        f"{_symmetry(kernel.activation_symmetric)}\n"
        f"int{kernel.weight_bits} weights {_share(kernel.weight_group, 'channel')}, "
        f"{_symmetry(kernel.weight_symmetric)}",
        "\n".join(formula),
        *_operands(kernel, operands),
        EXACT_INTEGERS,
        *_packed(kernel),
        *_hopper(kernel, " on the int8 tensor cores"),
    ]


def _weight_only(kernel: GemmKernel) -> list[str]:
    qw = _code("W[n, k]", kernel.weight_symmetric)
    step = GemmSizes.of(kernel).step
    if step:
        unit = "uW[n] " if kernel.format.unit_bits else ""
        formula = [
            f"    t[m, n] = sum of x[m, k] {qw} over the {step} channels k of a group",
            f"    y[m, n] = {unit}(sum over the groups of t[m, n] sW[n]) + b[n]",
        ]
    else:
        formula = [f"    y[m, n] = sW[n] (sum over k of x[m, k] {qw}) + b[n]"]
    integer = kernel.number == INTEGER
    weights = f"{f'int{kernel.weight_bits}' if integer else kernel.number} weights"
    symmetry = f", {_symmetry(kernel.weight_symmetric)}" if integer else ""
    x = "activations" if kernel.experts else "x"
    exact = "Codes are" if kernel.weight_symmetric else "q - z is"
    rounded = "sW qW" if kernel.weight_symmetric else "sW (qW - zW)"
    return [
        "Y [M, N] = X W^T of floating X [M, K] and quantized W [N, K].",
        f"{weights} {_share(kernel.weight_group, 'channel')}{symmetry}",
        "\n".join(formula),
        *_operands(kernel, [_operand(x, "[M, K], float32, float16 or bfloat16")]),
        f"{exact} exact in every dtype of x: weights are multiplied without a rounding of their own, and\n"
        "the scales meet the float32 sums. A float32 x is multiplied in three TF32 products, near float32's own\n"
        "precision. A program computes a tile of Y^T: the weights are the first operand of the product.",
        *_packed(kernel),
        *([CUBLAS_DENSE.format(rounded=rounded)] if kernel.dense else []),
        *_hopper(kernel, " where x is bfloat16"),
    ]


def _floats(kernel: GemmKernel) -> list[str]:
    group, units = kernel.weight_group, bool(kernel.format.unit_bits)
    if kernel.pairs:
        scaled = f"(qA[m, k] sA[m, k/{group}]) (qW[n, k] sW[n, k/{group}])"
        formula = f"    y[m, n] = {'uA[m] uW[n] ' if units else ''}sum over k of {scaled} + b[n]"
        operands = [
            _operand("activations", f"uint8 [M, K/2]: {_pair_codes()}"),
            _operand("activation_scale", f"uint8 [K/{group}, M]: {_block_scales(kernel)}"),
            *([_operand("activation_unit", "float32 [M]: of the scales")] if units else []),
        ]
    else:
        formula = "    y[m, n] = (sum over k of qA[m, k] qW[n, k]) sA[m] sW[n] + b[n]"
        operands = [
            _operand("activations", "int8 [M, K]: patterns e4m3"),
            _operand("activation_scale", "float32 [1, M]"),
        ]
    return [
        f"Y [M, N] = X W^T of quantized X [M, K] and W [N, K], both in {kernel.number}.",
        formula,
        *_operands(kernel, operands),
        EXACT_FLOATS,
        NATIVE_PAIRS if kernel.pairs else NATIVE_FP8,
        *([CUBLAS_FP8] if kernel.cublas else []),
        *_hopper(kernel, " on the fp8 tensor cores"),
    ]


def _operands(kernel: GemmKernel, activations: list[str]) -> list[str]:
    """The operands, one under the other, and what a gated Y is."""
    lines = [*activations, *_weights(kernel), _operand("bias", "float32 [N] or None")]
    gate, formula = ACTIVATIONS[kernel.activation]
    gated = [GATED.format(gate=gate, formula=formula)] if kernel.gated else []
    if kernel.experts:
        lines += [_operand("tiles", "int32 [1 + M / BLOCK_M]")]
        columns = "columns/2" if kernel.gated else "columns"
        lines += [_operand("out", f"[M, {columns}], any float dtype")]
        return ["\n".join(lines), EXPERTS, *gated]
    if kernel.gated:
        return ["\n".join([*lines, _operand("out", "[M, N/2], any float dtype")]), *gated]
    residual = "[M, N] in the dtype of out, or None: added to Y, which is rounded before and after"
    lines += [_operand("residual", residual), _operand("out", "[M, N], any float dtype")]
    return ["\n".join(lines)]


def _weights(kernel: GemmKernel) -> list[str]:
    """Codes, scales and zero points of W."""
    groups = _groups(kernel.weight_group)
    lines = [_operand("weights", _codes(kernel))]
    if kernel.pairs:
        lines.append(_operand("weight_scale", f"uint8 [{groups}, N]: {_block_scales(kernel)}"))
        if kernel.format.unit_bits:
            lines.append(_operand("weight_unit", "float32 [N]: of the scales"))
    else:
        lines.append(_operand("weight_scale", f"{'float16' if kernel.weight_group else 'float32'} [{groups}, N]"))
    if kernel.weight_symmetric:
        return lines
    if kernel.weight_bits <= 4:
        zero = f"uint8 [{groups}, ceil(N/2)]: channel 2i in the low nibble of byte i, 2i + 1 in the high"
    else:
        zero = f"int8 [{groups}, N]"
    return [*lines, _operand("weight_zero", zero)]


def _codes(kernel: GemmKernel) -> str:
    cut = planes(kernel.weight_bits)
    if kernel.pairs:
        return f"uint8 [N, K/2]: {_pair_codes()}"
    if kernel.number != INTEGER:
        return "int8 [N, K]: patterns e4m3"
    if not cut:
        return "int8 [N, K]"
    if cut == (4,):
        order = ", both in the order of `interleaved`" if kernel.interleaved else ""
        return (
            f"uint8 [N, K/2]: in every PACK channels, low nibbles hold the first half, high\nnibbles the second{order}"
        )
    text = (
        f"uint8 [N, {kernel.weight_bits}K/8]: planes of {', then '.join(map(str, cut))} bits of every code, "
        "the highest first;\n"
        "in every PACK channels of a plane of p bits, byte j holds channels j + i PACK p/8,\n"
        "i = 0 .. 8/p - 1, each in its bits p i .. p i + p - 1"
    )
    if kernel.interleaved:
        text += "\nof every 16 channels 8 j + 2 t + p, t = 0 .. 3, counts as channel 4 t + 2 p + j there"
    return text


def _packed(kernel: GemmKernel) -> list[str]:
    """How packed integer codes are multiplied."""
    sizes, cut = GemmSizes.of(kernel), planes(kernel.weight_bits)
    paragraphs = []
    if cut and kernel.number == INTEGER:
        lift = 2 ** (8 - kernel.weight_bits)
        lines = [
            f"The {kernel.weight_bits}-bit codes stay at the top of a byte, {lift} times their value; "
            "the scale makes up for it."
        ]
        if not sizes.nibbles:
            why = ": a step is no whole number of pack blocks" if cut == (4,) else ""
            lines.append(f"Each channel's bits are gathered by themselves{why}.")
        paragraphs.append("\n".join(lines))
    if sizes.step % sizes.tile:
        paragraphs.append(
            f"A step of {sizes.step} channels is multiplied as {sizes.multiplied()}, the rest of them masked."
        )
    return paragraphs


def _hopper(kernel: GemmKernel, where: str) -> list[str]:
    return [HOPPER.format(where=where)] if kernel.hopper else []


def _operand(name: str, text: str) -> str:
    return name.ljust(COLUMN) + text.replace("\n", "\n" + " " * COLUMN)


def _code(name: str, symmetric: bool) -> str:
    return f"q{name}" if symmetric else f"(q{name} - z{name[0]}[{name[2]}])"


def _share(group: int | None, whole: str) -> str:
    return f"per group of {group} channels" if group else f"per {whole}"


def _symmetry(symmetric: bool) -> str:
    return "symmetric" if symmetric else "asymmetric"


def _groups(group: int | None) -> str:
    return f"K/{group}" if group else "1"


def _pair_codes() -> str:
    return "patterns e2m1, channel 2j in the low nibble of byte j, 2j + 1 in the high"


def _block_scales(kernel: GemmKernel) -> str:
    return "patterns e4m3" if kernel.format.unit_bits else "patterns e8m0, exponents + 127"
