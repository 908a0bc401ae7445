"""What the file of an activation quantization kernel says at its top: formula, shapes, and how it computes."""

from __future__ import annotations

from qspec.catalog import INTEGER, Activation, ActivationKernel

ACTIVATIONS: dict[Activation, tuple[str, str]] = {  # what a gate passes through: its name, and its formula
    "silu": ("silu", "silu(x) = x / (1 + exp(-x))"),
    "gelu_tanh": ("gelu", "gelu(x) = x / (1 + exp(-2 sqrt(2/pi) (x + 0.044715 x^3)))"),
}
MADE = {"plain": "x", "rmsnorm": "RMSNorm(x)"} | {f"{f}_mul": f"{name}(x) up" for f, (name, _) in ACTIVATIONS.items()}
ROTATED = ("{}", "{} R", "({} R0)[P] R1")  # by the number of rotations


def describe_rows(kernel: ActivationKernel) -> str:
    """The text of the docstring, without the quotes."""
    parts = [kernel.name, _summary(kernel), _codes(kernel), _formula(kernel), _source(kernel)]
    parts += ["\n".join(_shapes(kernel)), "\n".join((*_launch(kernel), *_rotation(kernel), *_rounding(kernel)))]
    parts.append(_hopper(kernel))
    return "\n\n".join(part for part in parts if part)


def _summary(kernel: ActivationKernel) -> str:
    steps = {"plain": "", "rmsnorm": ", normed"}.get(kernel.source, ", gated")
    steps += ("", ", rotated", ", rotated, permuted and rotated again")[len(kernel.rotations)]
    steps += ", quantized" if kernel.bits != 16 else ""
    return f"The rows of X [M, K]{steps}, in one pass over memory."


def _codes(kernel: ActivationKernel) -> str:
    if kernel.bits == 16:
        return ""
    codes = f"int{kernel.bits}" if kernel.number == INTEGER else kernel.number
    symmetry = f", {'symmetric' if kernel.symmetric else 'asymmetric'}" if kernel.number == INTEGER else ""
    return f"{codes} codes {f'per group of {kernel.group} channels' if kernel.group else 'per token'}{symmetry}"


def _formula(kernel: ActivationKernel) -> str:
    lines = [f"y = {ROTATED[len(kernel.rotations)].format(MADE[kernel.source])}"]
    if kernel.bits != 16:
        lines += _quantization(kernel)
    return "\n".join(f"    {line}" for line in lines)


def _quantization(kernel: ActivationKernel) -> list[str]:
    clip = "" if kernel.clip == 1.0 else f"{kernel.clip!r} "
    reach, least = float(kernel.format.reach), "1 if that is 0, else 2^-100 or more"
    low, high = int(kernel.format.qmin), int(kernel.format.qmax)
    if kernel.number == "nvfp4":
        return [
            f"t = {clip}max|y of the row| / 6, rounded to four significant bits",
            "u = 2^(floor(log2 t) - 7)",
            f"b = e4m3({clip}max|y| / 6 / u), 2^-9 or more",
            "s = b u",
            "q = e2m1(y / s), of at most 6",
        ]
    if kernel.number == "mxfp4":
        return [f"s = 2^(floor(log2({clip}max|y| / {reach})) + 1)", "q = e2m1(y / s), of at most 6"]
    if kernel.number != INTEGER:
        return [f"s = {clip}max|y| / 448, {least}", "q = e4m3(y / s), of at most 448"]
    if kernel.symmetric:
        return [f"s = {clip}max|y| / {reach}, {least}", f"q = clamp(round_half_even(y / s), {low}, {high})"]
    return [
        f"s = {clip}(max(y, 0) - min(y, 0)) / {high - low}, {least}",
        f"z = clamp(round_half_even({low} - {clip}min(y, 0) / s), {low}, {high})",
        f"q = clamp(round_half_even(y / s) + z, {low}, {high})",
    ]


def _source(kernel: ActivationKernel) -> str:
    if kernel.activation is not None:
        return f"{ACTIVATIONS[kernel.activation][1]}, rounded to the dtype of x, as its product with up is."
    return {
        "plain": "",
        "rmsnorm": "RMSNorm(x) = gain x / sqrt(mean(x^2) + eps), rounded to the dtype of x before and after the gain.",
    }[kernel.source]


def _shapes(kernel: ActivationKernel) -> list[str]:
    """A line for every tensor that `run` takes."""
    lines = ["x             [M, K], float32, float16 or bfloat16; a row may be a part of a longer one"]
    if kernel.source == "rmsnorm":
        lines.append("gain, eps     float [K], number")
    elif kernel.activation is not None:
        lines.append("up            [M, K], of x's dtype, its rows as far apart")
    for index, size in enumerate(kernel.rotations):
        matrix = f"R{index}" if len(kernel.rotations) > 1 else "R"
        rest = "likewise" if index else "is block diagonal, every block this one"
        lines.append(f"rotation{index}     float16 [{size}, {size}]: {matrix}{', ' if index else ' '}{rest}")
    if len(kernel.rotations) > 1:
        lines.append("permutation   int16 [K]: P, where each channel comes from")
    return [*lines, *_results(kernel)]


def _results(kernel: ActivationKernel) -> list[str]:
    if kernel.bits == 16:
        return ["out           [M, K], the dtype of x"]
    groups = f"K/{kernel.group}" if kernel.group else "1"
    if kernel.pairs:
        units = bool(kernel.format.unit_bits)
        pattern = "b, a pattern e4m3" if units else "s, a pattern e8m0: its exponent + 127"
        return [
            "codes         uint8 [M, K/2]: q, channel 2j in the low nibble of byte j, 2j + 1 in the high",
            f"scale         uint8 [{groups}, M]: {pattern}",
            *(["unit          float32 [M]: u"] if units else []),
        ]
    return [
        f"codes         int8 [M, K]: {'q' if kernel.number == INTEGER else 'the pattern of q'}",
        f"scale         float32 [{groups}, M]: s",
        *([] if kernel.symmetric else [f"zero          int8 [{groups}, M]: z"]),
    ]


def _launch(kernel: ActivationKernel) -> tuple[str, ...]:
    return (
        f"A program holds whole rows{' and their rotations' if kernel.rotations else ''}.",
        "From compute capability 9.0 on (PDL) it is launched before the kernel ahead of it has ended, lets the next",
        "kernel be launched as early, and waits for the results of the one ahead.",
    )


def _rotation(kernel: ActivationKernel) -> tuple[str, ...]:
    if not kernel.rotations:
        return ()
    between = len(kernel.rotations) > 1
    fine = kernel.bits == 8
    return (
        "Rotations run on the float16 tensor cores with float32 sums. A row is lifted by the power of two that brings",
        "it to 2^11, so that it neither overflows nor loses anything: 16-bit floats and the rotation are exact, and",
        "their products too.",
        f"Float32 values {'(of x, and between the rotations) ' if between and fine else ''}"
        "are split into two float16, which hold 22 bits of them.",
        *(
            ["Between the rotations rows of 16-bit floats have 11 bits: a thousandth of a step of their codes."]
            if between and not fine
            else []
        ),
    )


def _rounding(kernel: ActivationKernel) -> tuple[str, ...]:
    if kernel.bits == 16:
        return ()
    corrected = "the quotient is" if kernel.rotations else "float32 quotients are"
    return (
        "Codes are those of IEEE quotients where s is from 2^-100 to 2^100: y meets the reciprocal and what that lacks",
        f"in one fused operation, and {corrected} corrected by the exact remainder (Markstein 1990).",
        "Adding 1.5 * 2^23 rounds half to even.",
        *(
            [
                "e4m3 and e2m1 round to the nearest number of that form, to even. "
                "Powers of two are no smaller than 2^-100."
            ]
            if kernel.number != INTEGER
            else ["No quotient is beyond the range, which is its own values' range."]
            if kernel.symmetric and kernel.clip == 1.0
            else []
        ),
    )


def _hopper(kernel: ActivationKernel) -> str:
    if not kernel.hopper:
        return ""
    start = (
        "On compute capability 9.0 a second kernel runs where X is bfloat16. Its programs walk the rows with the\n"
        "rotations in shared memory. Each block of the first product has a lift of its own"
    )
    if len(kernel.rotations) == 1:
        return (
            f"{start}\nthat its codes take back. Rotations are read before the kernel ahead has ended: "
            "it must not write them."
        )
    return (
        f"{start}, and the float16 between\n"
        "the rotations go straight to the places to which the permutation moves them. Rotations and the\n"
        "permutation are read before the kernel ahead has ended: it must not write them."
    )
