"""Sums of bfloat16 X and integer codes of 2 to 4 bits on compute capability 9.0, the codes decoded in registers."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, warpgroup_mma, warpgroup_mma_wait

from .hopper_operands import WARPGROUP_ROWS, WARPGROUP_WARPS
from .hopper_schedule import K_BLOCK
from .hopper_shared import operand_of, operand_tiles, reinterpret


@gluon.constexpr_function
def biased_zero(bits):
    """128 + 2^(bits - 1): a bfloat16 whose mantissa ends in the code 0 of `bits` bits, its sign's bit flipped."""
    return 128 + 2 ** (bits - 1)


@gluon.jit
def decode_low_nibbles(w, offset):
    """Four bytes to four bfloat16: a flipped nibble below the exponent of 128 is 136 + q, the offset 136 + z."""
    return gl.inline_asm_elementwise(
        """{ .reg .b32 a, b; shr.u32 b, $2, 8;
        lop3.b32 a, $2, 0x000F000F, 0x43084308, 0x6A; lop3.b32 b, b, 0x000F000F, 0x43084308, 0x6A;
        sub.rn.bf16x2 $0, a, $3; sub.rn.bf16x2 $1, b, $4; }""",
        "=r,=r,r,r,r",
        [w, offset],
        dtype=gl.bfloat16,
        is_pure=True,
        pack=4,
    )


@gluon.jit
def decode_high_nibbles(w, offset):
    """As `decode_low_nibbles`."""
    return gl.inline_asm_elementwise(
        """{ .reg .b32 a, b; shr.u32 a, $2, 4; shr.u32 b, $2, 12;
        lop3.b32 a, a, 0x000F000F, 0x43084308, 0x6A; lop3.b32 b, b, 0x000F000F, 0x43084308, 0x6A;
        sub.rn.bf16x2 $0, a, $3; sub.rn.bf16x2 $1, b, $4; }""",
        "=r,=r,r,r,r",
        [w, offset],
        dtype=gl.bfloat16,
        is_pure=True,
        pack=4,
    )


@gluon.constexpr_function
def plane_assembly(bits, half, odd):
    """The PTX of `decode_planes`.

    $4: a thread's word of the plane of two bits, $5 that of one bit where `bits` is 3; the last operand is the offset.
    """

    def shifted(to, word, by):
        if by == 0:
            return f"mov.b32 {to}, {word};"
        return f"shr.u32 {to}, {word}, {by};" if by > 0 else f"shl.b32 {to}, {word}, {-by};"

    def both(half_word):  # of a word
        return f"0x{65537 * half_word:08X}"

    three = bits == 3
    offset = "$6" if three else "$5"
    high, sign = (6, 4) if three else (3, 2)  # bits of a code that the plane of two has, and the highest
    lines = [
        "{ .reg .b32 a, h" + (", l" if three else "") + ", quarter, c;"
        " mov.b32 quarter, 0x3E803E80; mov.b32 c, 0x42C042C0;",
        f"sub.rn.bf16x2 c, c, {offset};",
    ]
    for pair in (0, 1):
        first = shifted("h", "$4", 8 * pair + 4 * half - (1 if three else 0))
        lines.append(first + (" " + shifted("l", "$5", 8 * pair + 4 * half + odd) if three else ""))
        for bit in (0, 2):
            lines.append(f"lop3.b32 a, h, {both(high * 2**bit)}, {both(0x4300 + sign * 2**bit)}, 0x6A;")
            if three:
                lines.append(f"lop3.b32 a, l, {both(2**bit)}, a, 0xEA;")
            if bit == 0:
                lines.append(f"sub.rn.bf16x2 ${pair}, a, {offset};")
            else:
                lines.append(f"fma.rn.bf16x2 ${2 + pair}, a, quarter, c;")
    return "\n        ".join([*lines, "}"])


@gluon.jit
def decode_planes(w, w_low, offset, BITS: gl.constexpr, HALF: gl.constexpr, ODD: gl.constexpr):
    """Two times 16 channels of a block, from 64 HALF + 16 ODD and from 64 HALF + 16 ODD + 32 on: bfloat16 [64, 16].

    With the sign's bit flipped, from bit b on below the exponent of 128, codes are 128 + 2^b (2^(BITS - 1) + q); the
    offset is that of b = 0 and q = z, and a quarter of the code's part that of b = 2. w, w_low: bytes [64, 16] of the
    planes, w_low looked at of three bits only.
    """
    if BITS == 3:
        return gl.inline_asm_elementwise(
            plane_assembly(BITS, HALF, ODD),
            "=r,=r,=r,=r,r,r,r,r",
            [w, w_low, offset],
            dtype=(gl.bfloat16, gl.bfloat16),
            is_pure=True,
            pack=4,
        )
    else:
        return gl.inline_asm_elementwise(
            plane_assembly(BITS, HALF, ODD),
            "=r,=r,=r,=r,r,r,r",
            [w, offset],
            dtype=(gl.bfloat16, gl.bfloat16),
            is_pure=True,
            pack=4,
        )


@gluon.jit
def column_chunk(w, number: gl.constexpr, COUNT: gl.constexpr, layout: gl.constexpr):
    """Part `number` of COUNT of the columns; no data moves."""
    if COUNT == 1:
        return gl.convert_layout(w, layout, assert_trivial=True)
    else:
        left, right = w.reshape((WARPGROUP_ROWS, 2, w.shape[1] // 2)).permute((0, 2, 1)).split()
        if number < COUNT // 2:
            return column_chunk(left, number, COUNT // 2, layout)
        else:
            return column_chunk(right, number - COUNT // 2, COUNT // 2, layout)


@gluon.jit
def interleaved_operand(values, layout: gl.constexpr):
    """[64, 64] in the order of the tensor cores' operand from the codes' order; no data moves.

    The four values of a thread's word are channels 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of 16.
    """
    values = values.reshape((WARPGROUP_ROWS, 4, 4, 2, 2)).permute((0, 1, 3, 2, 4)).reshape((WARPGROUP_ROWS, 64))
    return gl.convert_layout(values, layout, assert_trivial=True)


@gluon.jit
def plane_operand(planes, offset, BITS: gl.constexpr, HALF: gl.constexpr, layout: gl.constexpr):
    """64 channels of a block [64, 64]. planes: bytes of its even and odd 16s of channels, and of the low plane."""
    even, odd, w_low = planes
    a, c = decode_planes(even, w_low, offset, BITS, HALF, 0)
    b, d = decode_planes(odd, w_low, offset, BITS, HALF, 1)
    values = gl.join(gl.join(a, b), gl.join(c, d)).permute((0, 3, 2, 1))
    return interleaved_operand(values, layout)


@gluon.jit
def load_zero_nibbles(g, block, row):
    """Bytes [64] that hold the rows' zero points, of a block of 128 channels where weights are grouped."""
    if g.w.GROUP > 0:
        place = g.w.zero + block // (g.w.GROUP // K_BLOCK) * ((g.N + 1) // 2) + row // 2
        return gl.load(place, mask=(row < g.N) & (block * K_BLOCK < g.K), other=0)
    else:
        return gl.load(g.w.zero + row // 2, mask=row < g.N, other=0)


@gluon.jit
def zero_offset(nibbles, row, BITS: gl.constexpr, COLUMNS: gl.constexpr, layout: gl.constexpr):
    """`biased_zero` + z of each row, bfloat16 [64, COLUMNS], as decoding subtracts it."""
    nibble = (nibbles >> (row % 2 * 4).to(gl.uint8)) & 15
    zero = (biased_zero(BITS) - 8 + (nibble ^ 8).to(gl.int32)).to(gl.bfloat16)
    return gl.full((WARPGROUP_ROWS, COLUMNS), 0.0, gl.bfloat16, layout) + zero[:, None]


@gluon.jit
def block_ahead(stage, block: gl.constexpr, g):
    """The number of a slice's block, counted from a stage; those behind it are of the slice's next stage."""
    return (stage + block // g.BLOCKS * g.K_SLICES) * g.BLOCKS + block % g.BLOCKS


@gluon.jit
def multiply_block(w, w_low, x_tile, offset, block: gl.constexpr, g, layout: gl.constexpr, COLUMNS: gl.constexpr):
    """Gets the products [64, COLUMNS] of a block of 128 channels under way: of its first half, then of its second."""
    operand: gl.constexpr = gl.DotOperandLayout(0, layout, 2)
    none = gl.zeros((WARPGROUP_ROWS, COLUMNS), gl.float32, layout)
    words: gl.constexpr = offset.type.layout
    if g.w.BITS == 4:
        nibbles = w.index(block).load(words)
        low = interleaved_operand(decode_low_nibbles(nibbles, offset), operand)
        high = interleaved_operand(decode_high_nibbles(nibbles, offset), operand)
    else:
        even = column_chunk(w, 2 * block, 2 * g.BLOCKS, words)
        odd = column_chunk(w, 2 * block + 1, 2 * g.BLOCKS, words)
        if g.w.BITS == 3:
            planes = even, odd, column_chunk(w_low, block, g.BLOCKS, words)
        else:
            planes = even, odd, even
        low = plane_operand(planes, offset, g.w.BITS, 0, operand)
        high = plane_operand(planes, offset, g.w.BITS, 1, operand)
    x_low = operand_of(x_tile, 2 * block, COLUMNS)
    x_high = operand_of(x_tile, 2 * block + 1, COLUMNS)
    t = warpgroup_mma(low, x_low, none, use_acc=False, is_async=True)
    return warpgroup_mma(high, x_high, t, is_async=True)


@gluon.jit
def scale_block(t, g, shared, box, WARPGROUP: gl.constexpr, layout: gl.constexpr):
    """Times the scales of the block's group, a row of shared memory; as it is where each row of W has one scale."""
    if g.w.GROUP > 0:
        row = reinterpret(shared.group_scale.index(box), [g.BLOCK_N], gl.SwizzledSharedLayout(1, 1, 1, [0]))
        scale = row.slice(WARPGROUP * WARPGROUP_ROWS, WARPGROUP_ROWS).load(gl.SliceLayout(1, layout))
        return t * scale.to(gl.float32)[:, None]
    else:
        return t


@gluon.jit
def sum_weight_only_unit(g, shared, n0, first, last, k, WARPGROUP: gl.constexpr, COLUMNS: gl.constexpr):
    """t[n, m] = sum over blocks of s[n] sum over its k of x[m, k] (q[n, k] - z[n]) of a unit: float32 [64, COLUMNS].

    s is 1 where a row has one scale, which the epilogue multiplies by. q - z is exact in bfloat16.
    """
    K_SLICES: gl.constexpr = g.K_SLICES
    WARPGROUPS: gl.constexpr = g.BLOCK_N // WARPGROUP_ROWS
    OWN: gl.constexpr = WARPGROUP % WARPGROUPS  # of the slice's warpgroups
    X_BOXES: gl.constexpr = g.x.data.block_shape[0]  # of a stage
    TOGETHER: gl.constexpr = 2 if g.BLOCKS > 1 and COLUMNS <= 64 else 1  # blocks under way, as many as registers hold
    WORDS: gl.constexpr = 64 if g.w.BITS == 4 else 16  # columns of a thread's words
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPGROUP_WARPS, 1], [16, COLUMNS, 16])
    stored: gl.constexpr = gl.DotOperandLayout(
        0, gl.NVMMADistributedLayout([3, 0], [WARPGROUP_WARPS, 1], [16, COLUMNS, 32]), 4
    )
    planes: gl.constexpr = gl.DistributedLinearLayout(  # of 16 bytes
        [[0, 1], [0, 2], [8, 0]], [[0, 4], [0, 8], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [WARPGROUP_ROWS, 16]
    )
    words: gl.constexpr = stored if g.w.BITS == 4 else planes
    start = first + (WARPGROUP // WARPGROUPS + K_SLICES - k % K_SLICES) % K_SLICES
    if g.w.zero is not None:
        row = n0 + gl.arange(0, WARPGROUP_ROWS, gl.SliceLayout(1, words))
        nibbles = load_zero_nibbles(g, start * g.BLOCKS, row)
        if g.w.GROUP == 0:
            offset = zero_offset(nibbles, row, g.w.BITS, WORDS, words)
    else:
        offset = gl.full((WARPGROUP_ROWS, WORDS), biased_zero(g.w.BITS), gl.bfloat16, words)
    y = gl.zeros((WARPGROUP_ROWS, COLUMNS), gl.float32, layout)
    for stage in range(start, last, K_SLICES):
        slot = (k + stage - first) % g.STAGES
        mbarrier.wait(shared.full.index(slot), (k + stage - first) // g.STAGES & 1)
        if g.w.BITS == 4:
            w = operand_tiles(shared.w.index(slot * WARPGROUPS + OWN), g.BLOCKS, WARPGROUP_ROWS, 64)
            w_low = w
        else:
            w = shared.w.index(slot * WARPGROUPS + OWN).load(stored)
            w_low = w
            if g.w.BITS == 3:
                w_low = shared.low_codes.index(slot * WARPGROUPS + OWN).load(stored)
        x_tile = operand_tiles(shared.x.index(slot), X_BOXES, g.BLOCK_M, g.x.data.block_shape[2])
        for block in gl.static_range(0, g.BLOCKS, TOGETHER):
            if g.w.zero is not None and g.w.GROUP > 0:
                offset = zero_offset(nibbles, row, g.w.BITS, WORDS, words)
                nibbles = load_zero_nibbles(g, block_ahead(stage, block + 1, g), row)
            t = multiply_block(w, w_low, x_tile, offset, block, g, layout, COLUMNS)
            if TOGETHER == 2:
                if g.w.zero is not None and g.w.GROUP > 0:
                    offset = zero_offset(nibbles, row, g.w.BITS, WORDS, words)
                    nibbles = load_zero_nibbles(g, block_ahead(stage, block + 2, g), row)
                u = multiply_block(w, w_low, x_tile, offset, block + 1, g, layout, COLUMNS)
                t, u = warpgroup_mma_wait(0, deps=[t, u])
                y = y + scale_block(t, g, shared, slot * g.BLOCKS + block, OWN, layout)
                y = y + scale_block(u, g, shared, slot * g.BLOCKS + block + 1, OWN, layout)
            else:
                t = warpgroup_mma_wait(0, deps=[t])
                y = y + scale_block(t, g, shared, slot * g.BLOCKS + block, OWN, layout)
        mbarrier.arrive(shared.empty.index(slot), count=1)
    return (y,)
