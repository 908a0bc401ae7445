"""Shared memory of activation quantization on compute capability 9.0: operands of products, words by address."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .hopper_rows_layouts import quad_columns
from .hopper_shared import REINTERPRETS


@gluon.jit
def shared_base():
    """The address int32 of the kernel's one allocation: Triton puts the largest first."""
    return gl.inline_asm_elementwise(
        "{ .reg .b32 a; mov.u32 a, global_smem; add.u32 $0, a, $1; }",
        "=r,r",
        [0],
        dtype=gl.int32,
        is_pure=True,
        pack=1,
    )


@gluon.jit
def load_words(byte):
    """The words int32 at addresses `byte`."""
    return gl.inline_asm_elementwise("ld.shared.b32 $0, [$1];", "=r,r", [byte], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def store_words(byte, words):
    """Writes words int32 to addresses `byte`."""
    gl.inline_asm_elementwise(
        "st.shared.b32 [$1], $2; mov.b32 $0, $1;", "=r,r,r", [byte, words], dtype=gl.int32, is_pure=False, pack=1
    )


@gluon.jit
def store_half_below(byte, half, index, END):
    """Writes the low 16 bits of `half` to address `byte` where index < END."""
    gl.inline_asm_elementwise(
        """{ .reg .b16 h; .reg .pred p; cvt.u16.u32 h, $2; setp.lt.s32 p, $3, $4;
            @p st.shared.b16 [$1], h; mov.b32 $0, $1; }""",
        "=r,r,r,r,r",
        [byte, half, index, END],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def store_eight(byte, y):
    """Writes eight float32, a tuple, as float16 to the 16 bytes at address `byte`."""
    gl.inline_asm_elementwise(
        """{ .reg .b32 a, b, c, d; cvt.rn.f16x2.f32 a, $2, $1; cvt.rn.f16x2.f32 b, $4, $3;
        cvt.rn.f16x2.f32 c, $6, $5; cvt.rn.f16x2.f32 d, $8, $7;
        st.shared.v4.b32 [$9], {a, b, c, d}; mov.b32 $0, a; }""",
        "=r,f,f,f,f,f,f,f,f,r",
        [y[0], y[1], y[2], y[3], y[4], y[5], y[6], y[7], byte],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def store_two_halves(even, odd, offsets, base):
    """Writes two float32 as float16 to base + the low and the high half of `offsets`."""
    gl.inline_asm_elementwise(
        """{ .reg .b32 v, a, b; .reg .b16 l, h; cvt.rn.f16x2.f32 v, $2, $1; mov.b32 {l, h}, v;
        and.b32 a, $3, 0xFFFF; shr.u32 b, $3, 16; add.u32 a, a, $4; add.u32 b, b, $4;
        st.shared.b16 [a], l; st.shared.b16 [b], h; mov.b32 $0, v;
        }""",
        "=r,f,f,r,r",
        [even, odd, offsets, base],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def store_two_halves_and_rests(even, odd, offsets, base, rest):
    """As `store_two_halves`, and what float16 leaves of both, as float16, `rest` bytes further."""
    gl.inline_asm_elementwise(
        """{ .reg .b32 v, a, b; .reg .b16 l, h; cvt.rn.f16x2.f32 v, $2, $1; mov.b32 {l, h}, v;
        and.b32 a, $3, 0xFFFF; shr.u32 b, $3, 16; add.u32 a, a, $4; add.u32 b, b, $4;
        st.shared.b16 [a], l; st.shared.b16 [b], h; mov.b32 $0, v;
        .reg .f32 p, q; cvt.f32.f16 p, l; cvt.f32.f16 q, h; sub.f32 p, $1, p; sub.f32 q, $2, q;
        cvt.rn.f16x2.f32 v, q, p; mov.b32 {l, h}, v; add.u32 a, a, $5; add.u32 b, b, $5;
        st.shared.b16 [a], l; st.shared.b16 [b], h;
        }""",
        "=r,f,f,r,r,r",
        [even, odd, offsets, base, rest],
        dtype=gl.int32,
        is_pure=False,
        pack=1,
    )


@gluon.jit
def swizzled(byte, WIDTH: gl.constexpr):
    """Where byte `byte` of rows of WIDTH bytes lies: chunks of 16 take turns, so that eight rows meet all banks."""
    return byte ^ ((byte >> 7 & (WIDTH // 16 - 1)) << 4)


@gluon.jit
def operand_view(space, start: gl.constexpr, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """float16 [ROWS, COLUMNS] from kilobyte `start` on, as the tensor cores take it."""
    layout: gl.constexpr = gl.NVMMASharedLayout(128 if COLUMNS >= 64 else 2 * COLUMNS, 16)
    if REINTERPRETS:
        own = space.slice(start, max(ROWS * COLUMNS // 512, 1), dim=0)
        return own.reinterpret(gl.float16, [ROWS, COLUMNS], layout)
    else:
        return space.index(start)._reinterpret(gl.float16, [ROWS, COLUMNS], layout)


@gluon.jit
def store_operand(y, start, FROM: gl.constexpr, TILE: gl.constexpr, WARPS: gl.constexpr):
    """Writes y float32 [n, 128] as float16 to the rows from FROM on of the operand [TILE, 128] at address `start`."""
    layout: gl.constexpr = gl.BlockedLayout([1, 1], [2, 16], [WARPS, 1], [1, 0])
    i = FROM + gl.arange(0, y.shape[0], gl.SliceLayout(1, layout))[:, None]
    chunk = gl.arange(0, 16, gl.SliceLayout(0, layout))[None, :]
    byte = start + chunk // 8 * (TILE * 128) + swizzled(i * 128 + chunk % 8 * 16, 128)
    even, odd = gl.split(y.reshape((y.shape[0], 16, 2, 2, 2)))
    y04, y26 = gl.split(even)
    y15, y37 = gl.split(odd)
    y0, y4 = gl.split(y04)
    y1, y5 = gl.split(y15)
    y2, y6 = gl.split(y26)
    y3, y7 = gl.split(y37)
    byte = gl.convert_layout(byte, y0.type.layout, assert_trivial=True)
    store_eight(byte, (y0, y1, y2, y3, y4, y5, y6, y7))


@gluon.jit
def load_rotation_cell(
    rotation,
    i0: gl.constexpr,
    j0: gl.constexpr,
    SIZE: gl.constexpr,
    ROWS: gl.constexpr,
    COLUMNS: gl.constexpr,
    WARPS: gl.constexpr,
):
    """ROWS rows from i0 and COLUMNS columns from j0 on of a rotation [SIZE, SIZE], zero beyond it."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // COLUMNS, COLUMNS // 8], [WARPS, 1], [1, 0])
    i = (i0 + gl.arange(0, ROWS, gl.SliceLayout(1, layout)))[:, None]
    j = (j0 + gl.arange(0, COLUMNS, gl.SliceLayout(0, layout)))[None, :]
    return gl.load(rotation + i * SIZE + j, mask=(i < SIZE) & (j < SIZE), other=0.0)


@gluon.jit
def store_rotation(r, space, start: gl.constexpr, TILE: gl.constexpr, WARPS: gl.constexpr):
    """Writes r with its columns in the order of the threads that get their products, of products of TILE rows."""
    ROWS: gl.constexpr = r.shape[0]
    COLUMNS: gl.constexpr = r.shape[1]
    QUAD: gl.constexpr = quad_columns(TILE, COLUMNS, WARPS)
    r = r.reshape((ROWS, COLUMNS // QUAD, 4, QUAD // 8, 2)).permute((0, 1, 3, 2, 4))
    operand_view(space, start, ROWS, COLUMNS).store(r.reshape((ROWS, COLUMNS)))
