"""The kernels that exist, as frozen values: which formats they take, and what they are called. No torch.

A layer runs one GEMM kernel and, before it, an activation quantization kernel where its input needs work (an online
transform, quantization, or both). The plan asks `kernels_for` which ones a scheme needs; the generator renders
those values and nothing else. Every field is checked on construction, so that a name or a rendered
line holds only integers and words from here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

from qspec.errors import InputError
from qspec.formats import NUMBER_FORMATS, NumberFormat, Scheme, TensorFormat

Activation = Literal["silu", "gelu_tanh"]  # what the gate of an MLP passes through
GATES: tuple[Activation, ...] = get_args(Activation)
SOURCES = ("plain", "rmsnorm", *(f"{gate}_mul" for gate in GATES))
TRANSFORMS = ("none", "rotate", "rotate_permute_rotate")  # by the number of rotations
WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8)
ACTIVATION_BITS = (4, 8)
INTEGER = "int"
FLOATS = tuple(name for name, number in NUMBER_FORMATS.items() if number.kind == "float")
PLANES = (4, 2, 1)  # bits of the pieces that a packed code is cut into, the highest first
ROTATION_BLOCKS = (16, 32, 64, 128)  # of a first rotation: its matrix is held in shared memory
SECOND_BLOCKS = (2, 256)  # of a second rotation, from .. to: H of 4096 = 128 x 32, 18944 = 128 x 148, 768 = 64 x 12
SMALLEST_PRODUCT = 16  # channels of one product on the tensor cores
MEASURES = ("probability", "margin", "entropy")  # of how sure a token is
HEAD_WIDTHS = (64, 128)
FEW = 64  # queries that the attention kernel takes
MOST_DECIDED = 512  # places of a row that the commit kernel takes: n^2 comparisons, 22 us of an H200
PAIR = 2  # channels of a byte of 4-bit floats
GATE = 8  # channels of gate, and then of up, that follow one another in a gated GEMM
PACKING = (
    1  # the format of packed weights (`kernels.packing`): the next number where other bytes stand for the same codes
)
PACK_BLOCKS = (128, 64, 32)  # input channels whose codes are packed together
CLIP_RANGE = (0.01, 1.0)
HOPPER_BITS = (2, 3, 4)  # of the weights that their weight-only kernels take
HOPPER_BLOCK = 128  # input channels that the kernels for compute capability 9.0 take at once
HOPPER_ROTATION = 160  # the largest second rotation that its activation quantization kernels hold
MAX_COLUMNS = 32768  # the int32 sum of K products of 8-bit differences: 255 * 255 * K < 2^31

SUPPORTED = (
    "kernels exist for int2 to int8, uint3 and uint4 weights, per channel or per group, "
    "and for activations in 16 bits, or int4 and int8 per token or per group; "
    "for fp8_e4m3 weights per channel, mxfp4 per group 32 and nvfp4 per group 16, "
    "and for activations in 16 bits, or in the same format (fp8_e4m3 per token)"
)


class NoKernel(InputError):  # noqa: N818 - read as a statement: `except NoKernel`
    """No kernel exists for a format; the message says which part is missing, the hint what is supported."""

    def __init__(self, reason: str, *, where: str | None = None) -> None:
        super().__init__(reason, where=where, hint=SUPPORTED)


@dataclass(frozen=True)
class ActivationKernel:
    """One pass over the rows of X [tokens, K]: the online transform, then dynamic quantization.

    rotations: block sizes of the rotations of the transform (`qspec.transforms`): none, one, or two with a permutation
    between them.
    bits: 4 or 8 (codes out), or 16: transform only, floats out.
    group: input channels that share a scale; None is per token. clip: factor on the range before rounding.
    number: of the codes, "int" or one of `FLOATS`.
    source: what is computed of the inputs first: the RMSNorm of a row, or f(gate) times up; "plain" is nothing.
    """

    rotations: tuple[int, ...]
    bits: int
    group: int | None
    symmetric: bool
    clip: float
    source: str = "plain"
    number: str = INTEGER

    def __post_init__(self) -> None:
        _check_rotations(self.rotations)
        _require(type(self.symmetric) is bool, "symmetric is neither true nor false")
        _require(self.source in SOURCES, f"rows made by {self.source} have no kernel")
        if self.bits == 16:
            computes = self.rotations != () or self.source != "plain"
            _require(computes, "16-bit activations need no kernel where nothing is computed of them")
            plain = self.group is None and self.symmetric and self.clip == 1.0
            _require(plain and self.number == INTEGER, "16-bit activations have no codes and no scales")
            return
        _check_number(self.number, self.bits, self.group, self.symmetric, "activations")
        _check_bits(self.bits, ACTIVATION_BITS, "activations")
        _check_group(self.group, "activations")
        _require(isinstance(self.clip, float), "an activation clip is a number")
        low, high = CLIP_RANGE
        _require(low <= self.clip <= high, f"an activation clip of {self.clip} is not in {low} .. {high}")

    @property
    def hopper(self) -> bool:
        """Whether its file has a second kernel, for compute capability 9.0: rotated rows with one scale each."""
        plain = self.number == INTEGER and self.symmetric and self.group is None and self.bits in (4, 8)
        return plain and self.rotations[:1] == (HOPPER_BLOCK,) and self.rotations[-1] <= HOPPER_ROTATION

    @property
    def format(self) -> NumberFormat:
        """Of its codes, where it has any."""
        return _number_format(self.number, self.bits)

    @property
    def activation(self) -> Activation | None:
        """f where it computes f(gate) up, one of `GATES`."""
        return next((gate for gate in GATES if self.source == f"{gate}_mul"), None)

    @property
    def pairs(self) -> bool:
        """Whether two neighbouring channels share a byte (`GemmKernel.pairs`)."""
        return self.number != INTEGER and self.bits == 4

    @property
    def transform(self) -> str:
        """What its name calls the transform."""
        return TRANSFORMS[len(self.rotations)]

    @property
    def results(self) -> tuple[str, ...]:
        """What it fills, by parameter: floats, or codes, scales, and zero points or units."""
        if self.bits == 16:
            return ("out",)
        others = () if self.symmetric else ("zero",)
        return ("codes", "scale", *(("unit",) if self.format.unit_bits else others))

    @property
    def name(self) -> str:
        """Such as row_rotate_permute_rotate128_int4_token_sym, row_none_int8_group64_asym_clip0p9."""
        block = "x".join(str(size) for size in dict.fromkeys(self.rotations))
        made = "" if self.source == "plain" else f"{self.source}_"
        if self.bits == 16:
            return f"row_{made}{self.transform}{block}_float"
        share = "token" if self.group is None else f"group{self.group}"
        clip = "" if self.clip == 1.0 else f"_clip{repr(self.clip).replace('.', 'p')}"
        if self.number != INTEGER:
            return f"row_{made}{self.transform}{block}_{self.number}{clip}"
        return f"row_{made}{self.transform}{block}_int{self.bits}_{share}_{_symmetry(self.symmetric)}{clip}"


@dataclass(frozen=True)
class GemmKernel:
    """Y [tokens, N] = X W^T for packed W; activation_bits 16 means that X is floating (W4A16).

    gated: W has the channels of gate and up, `GATE` of each in turn, and Y [tokens, N/2] is f(gate) up
    (`qspec.models.inputs.Gated`), f being `activation`. experts: W has the channels of one expert behind those of
    another, and every row of X meets those of one: a grouped GEMM.
    """

    weight_bits: int
    weight_group: int | None
    weight_symmetric: bool
    activation_bits: int
    activation_group: int | None
    activation_symmetric: bool
    number: str = INTEGER
    gated: bool = False
    experts: bool = False
    activation: Activation = "silu"

    def __post_init__(self) -> None:
        _check_number(self.number, self.weight_bits, self.weight_group, self.weight_symmetric, "weights")
        _check_bits(self.weight_bits, WEIGHT_BITS, "weights")
        _check_group(self.weight_group, "weights")
        _require(type(self.weight_symmetric) is bool, "symmetric is neither true nor false")
        _require(type(self.activation_symmetric) is bool, "symmetric is neither true nor false")
        _require(type(self.gated) is bool, "gated is neither true nor false")
        _require(type(self.experts) is bool, "experts is neither true nor false")
        _require(self.activation in (GATES if self.gated else GATES[:1]), f"a gate by {self.activation} has no kernel")
        if self.experts and self.activation_bits != 16:
            _require(not self.pairs, f"a mixture of experts with activations in {self.number} has no kernel")
        if self.activation_bits == 16:
            plain = self.activation_group is None and self.activation_symmetric
            _require(plain, "16-bit activations have no scales")
        else:
            own = (self.activation_bits, self.activation_group, self.activation_symmetric)
            _check_number(self.number, *own, "activations")
            _check_bits(self.activation_bits, ACTIVATION_BITS, "activations")
            _check_group(self.activation_group, "activations")

    @property
    def hopper(self) -> bool:
        """Whether its file has a second kernel, for compute capability 9.0."""
        if self.activation_bits == 16:
            return (
                self.number == INTEGER
                and self.weight_bits in HOPPER_BITS
                and (self.weight_group or HOPPER_BLOCK) % HOPPER_BLOCK == 0
            )
        plain = self.weight_symmetric and self.activation_symmetric
        return plain and self.weight_bits in (4, 8) and self.weight_group is None and self.activation_group is None

    @property
    def cublas(self) -> bool:
        """Whether its file can hand the GEMM to cuBLAS: `dense` weights, or fp8_e4m3 as it is.

        A kernel that gates what cuBLAS gave takes longer than cuBLAS is faster at fp8_e4m3.
        """
        return self.dense or (self.number == "fp8_e4m3" and not self.gated and not self.experts)

    @property
    def dense(self) -> bool:
        """Whether its file can write the weights down in the dtype of 16-bit activations, in every call."""
        return self.activation_bits == 16 and not self.experts

    @property
    def interleaved(self) -> bool:
        """Whether its codes are packed in the order of bfloat16 operands (`kernels.packing`)."""
        return self.hopper and self.activation_bits == 16

    @property
    def format(self) -> NumberFormat:
        """Of the codes of its weights."""
        return _number_format(self.number, self.weight_bits)

    def takes(self, weights: TensorFormat) -> bool:
        """Whether codes and scales of this format are its weights."""
        own = (self.number, self.weight_bits, self.weight_group, self.weight_symmetric)
        return own == (_number(weights), weights.number.bits, _group_size(weights), weights.symmetric)

    @property
    def pairs(self) -> bool:
        """Whether two neighbouring channels share a byte, as the tensor cores take 4-bit floats."""
        return self.number != INTEGER and self.weight_bits == 4

    def pack_block(self, in_features: int) -> int:
        """Input channels whose codes are packed together."""
        return PAIR if self.pairs else pack_block(in_features)

    def channels(self, rows: int) -> int:
        """Channels of Y, for W of so many rows."""
        return rows // 2 if self.gated else rows

    @property
    def name(self) -> str:
        """Such as gemm_w4g128_sym_a4, gemm_w8_asym_a8g64_asym, activations symmetric unless marked; gemm_nvfp4_a4;
        with `_gated` and its f, unless that is silu, and `_experts` behind.
        """
        activation = f"_{self.activation}" * (self.activation != "silu")
        gated = "_gated" * self.gated + activation + "_experts" * self.experts
        if self.number != INTEGER:
            return f"gemm_{self.number}_a{self.activation_bits}{gated}"
        weights = f"w{self.weight_bits}{_group(self.weight_group)}_{_symmetry(self.weight_symmetric)}"
        activations = f"a{self.activation_bits}{_group(self.activation_group)}"
        return f"gemm_{weights}_{activations}{'' if self.activation_symmetric else '_asym'}{gated}"


@dataclass(frozen=True)
class AttentionKernel:
    """Attention of few queries, at most `FEW`, to the keys and values of a canvas; width: channels of a head."""

    width: int

    def __post_init__(self) -> None:
        _check_choice(self.width, HEAD_WIDTHS, "a head width")

    @property
    def name(self) -> str:
        """Such as attention_few128."""
        return f"attention_few{self.width}"


@dataclass(frozen=True)
class RotaryKernel:
    """Rotary positions of queries and keys, and where keys and values are kept; width: channels of a head."""

    width: int

    def __post_init__(self) -> None:
        _check_choice(self.width, HEAD_WIDTHS, "a head width")

    @property
    def name(self) -> str:
        """Such as rotary128."""
        return f"rotary{self.width}"


@dataclass(frozen=True)
class ExpertsKernel:
    """Around the grouped GEMMs of a mixture of experts: `sort` rows by expert, `sum` what a token's experts gave."""

    does: Literal["sort", "sum"]

    def __post_init__(self) -> None:
        _require(self.does in ("sort", "sum"), f"{self.does} has no kernel")

    @property
    def name(self) -> str:
        """experts_sort or experts_sum."""
        return f"experts_{self.does}"


@dataclass(frozen=True)
class LikeliestKernel:
    """The likeliest token of each row of logits and its confidence, by one of `MEASURES`."""

    measure: str

    def __post_init__(self) -> None:
        _require(self.measure in MEASURES, f"a {self.measure} of confidence has no kernel")

    @property
    def name(self) -> str:
        """Such as likeliest_probability."""
        return f"likeliest_{self.measure}"


@dataclass(frozen=True)
class CommitKernel:
    """Which masks a denoising step commits, of at most `MOST_DECIDED` places of a row, and committing them."""

    @property
    def name(self) -> str:
        return "commit"


@dataclass(frozen=True)
class LayerKernels:
    """What one quantized linear launches; row is None when its input is used as it comes."""

    row: ActivationKernel | None
    gemm: GemmKernel

    @property
    def rotations(self) -> tuple[int, ...]:
        """Block sizes of the rotations of the input, as the activation quantization kernel has them."""
        return self.row.rotations if self.row else ()

    def gated(self, activation: Activation = "silu") -> LayerKernels:
        """Of gate and up as one GEMM that gives f(gate) up."""
        return replace(self, gemm=replace(self.gemm, gated=True, activation=activation))

    def of_experts(self) -> LayerKernels:
        """Of a stack of experts' linears."""
        return replace(self, gemm=replace(self.gemm, experts=True))

    def plain(self) -> LayerKernels:
        """Of an input of which nothing is computed but transform and codes."""
        if self.row is not None and (self.row.rotations or self.row.bits != 16):
            return replace(self, row=replace(self.row, source="plain"))
        return replace(self, row=None)

    def check(self, in_features: int, where: str | None = None) -> None:
        """Raises NoKernel if these kernels cannot run on `in_features` input channels."""
        pack_block(in_features, where)
        if in_features > MAX_COLUMNS:
            raise NoKernel(f"{in_features} input channels are more than {MAX_COLUMNS}", where=where)
        sizes = {
            "weight group": self.gemm.weight_group,
            "activation group": self.gemm.activation_group,
        }
        for number, block in enumerate(self.rotations, 1):
            sizes[f"block of rotation {number}"] = block
        for what, size in sizes.items():
            if size and in_features % size:
                reason = f"{in_features} input channels do not divide by the {what}, {size}"
                raise NoKernel(reason, where=where)


@lru_cache(maxsize=1024)  # a check asks for the same ones at every layer
def kernels_for(scheme: Scheme, rotations: tuple[int, ...] = (), source: str = "plain") -> LayerKernels:
    """The kernels of a linear with this scheme whose input is rotated in blocks of these sizes. Raises NoKernel.

    source: of what the input is computed, for the activation quantization kernel to do (`SOURCES`).
    """
    weights, activations = scheme.weights, scheme.activations
    number = _number(weights)
    weight_group = _format(weights, WEIGHT_BITS, "weights", "channel")
    if activations is None:
        computes = rotations or source != "plain"
        row = ActivationKernel(rotations, 16, None, True, 1.0, source=source) if computes else None
        gemm = GemmKernel(weights.number.bits, weight_group, weights.symmetric, 16, None, True, number)
        return LayerKernels(row, gemm)
    group = _format(activations, ACTIVATION_BITS, "activations", "token")
    alike = activations.number == weights.number or "float" not in (weights.number.kind, activations.number.kind)
    _require(alike, f"activations in {activations.number} have no kernel with weights in {weights.number}")
    _require(activations.clip.kind != "mse", "dynamic activations take a clip ratio, not a searched clip")
    clip = float(activations.clip.ratio) if activations.clip.kind == "ratio" else 1.0
    bits = activations.number.bits
    return LayerKernels(
        ActivationKernel(rotations, bits, group, activations.symmetric, clip, source, number),
        GemmKernel(weights.number.bits, weight_group, weights.symmetric, bits, group, activations.symmetric, number),
    )


def pack_block(in_features: int, where: str | None = None) -> int:
    """Input channels whose codes are packed together: 128, or 64 or 32 where 128 does not divide K."""
    for block in PACK_BLOCKS:
        if in_features > 0 and in_features % block == 0:
            return block
    raise NoKernel(f"{in_features} input channels are not a multiple of {PACK_BLOCKS[-1]}", where=where)


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below `size`."""
    return 1 << (size - 1).bit_length()


def rotated_width(order: int) -> int:
    """Columns in which an activation quantization kernel holds the blocks of its last rotation, of this order."""
    return max(power_of_two(order), SMALLEST_PRODUCT)


def planes(bits: int) -> tuple[int, ...]:
    """The pieces of a code of `bits` bits, the highest first: 7 = 4 + 2 + 1, 3 = 2 + 1; none at 8, which is a byte."""
    return tuple(plane for plane in PLANES if bits & plane)


def _number(fmt: TensorFormat) -> str:
    """Of `ActivationKernel` and `GemmKernel`: a float format's name, or `INTEGER`."""
    return fmt.number.name if fmt.number.kind == "float" else INTEGER


def _group_size(fmt: TensorFormat) -> int | None:
    """Input channels that share a scale; None is one scale a row."""
    return fmt.granularity.size if fmt.granularity.kind == "group" else None


def _format(fmt: TensorFormat, widths: tuple[int, ...], operand: str, whole: Literal["channel", "token"]) -> int | None:
    """Checks number format and granularity of one operand; returns its group, None for one scale a row."""
    if fmt.number.kind == "float":
        wanted = f"per group {fmt.number.block}" if fmt.number.block else f"per {whole}"
        _require(str(fmt.granularity) == wanted, f"{operand} in {fmt.number} {fmt.granularity} have no kernel")
        return fmt.number.block or None
    unsigned = fmt.number.kind == "uint" and operand == "weights" and not fmt.symmetric  # packed as signed ones
    _require(fmt.number.kind == "int" or unsigned, f"{operand} in {fmt.number} have no kernel")
    _check_bits(fmt.number.bits, widths, operand)
    kind = fmt.granularity.kind
    _require(kind in (whole, "group"), f"{operand} {fmt.granularity} have no kernel")
    group = _group_size(fmt)
    _check_group(group, operand)
    return group


def _check_rotations(rotations: tuple[int, ...]) -> None:
    _require(len(rotations) < len(TRANSFORMS), f"{len(rotations)} rotations have no kernel")
    for first in rotations[:1]:
        _check_choice(first, ROTATION_BLOCKS, "a rotation block")
    for second in rotations[1:]:
        low, high = SECOND_BLOCKS
        fits = type(second) is int and low <= second <= high
        _require(fits, f"a second rotation block of {second} has no kernel; there are {low} to {high}")


def _number_format(name: str, bits: int) -> NumberFormat:
    return NUMBER_FORMATS[f"int{bits}" if name == INTEGER else name]


def _check_number(name: str, bits: int, group: int | None, symmetric: bool, operand: str) -> None:
    """A float format fixes bits, group and symmetry."""
    if name == INTEGER:
        return
    _require(name in FLOATS, f"{operand} in {name} have no kernel")
    number = NUMBER_FORMATS[name]
    fits = (bits, group, symmetric) == (number.bits, number.block or None, True)
    _require(fits, f"{operand} in {name} of {bits} bits in groups of {group} have no kernel")


def _check_bits(bits: int, widths: tuple[int, ...], operand: str) -> None:
    _require(type(bits) is int and bits in widths, f"{operand} in {bits} bits have no kernel")


def _check_group(group: int | None, operand: str) -> None:
    if group is not None:
        fits = type(group) is int and 1 <= group <= MAX_COLUMNS
        _require(fits, f"{operand} in groups of {group} have no kernel; there are 1 to {MAX_COLUMNS}")


def _check_choice(value: int, choices: tuple[int, ...], what: str) -> None:
    listed = ", ".join(map(str, choices))
    _require(type(value) is int and value in choices, f"{what} of {value} has no kernel; there are {listed}")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise NoKernel(otherwise)


def _symmetry(symmetric: bool) -> str:
    return "sym" if symmetric else "asym"


def _group(group: int | None) -> str:
    return "" if group is None else f"g{group}"
