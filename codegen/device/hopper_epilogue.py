"""What the kernel for compute capability 9.0 does to the sums of a tile of Y^T [n, m] on their way to memory."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, tma

from .gates import GELU_TANH_PTX, SILU_PTX
from .hopper_operands import WARPGROUP_ROWS, WARPGROUP_WARPS, staging_buffers
from .hopper_shared import partition_barrier, tma_store


@gluon.jit
def approximate_activation(x, ACTIVATION: gl.constexpr):
    """`activate` of float32: the bits of Triton's own division and power, without their steps for tiny operands.

    So silu gives 0 of x below -87, gelu of x below -10.
    """
    PTX: gl.constexpr = SILU_PTX if ACTIVATION == "silu" else GELU_TANH_PTX
    return gl.inline_asm_elementwise(PTX, "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)


@gluon.jit
def gate_sums(y, ACTIVATION: gl.constexpr, dtype: gl.constexpr):
    """f(gate) up [n/2, m] of y [n, m], of whose rows 8 are of gate and 8 of up in turn, each rounded to `dtype`.

    A thread has both of a channel: rows r and r + 8 of a warp's 16.
    """
    COLUMNS: gl.constexpr = y.shape[1]
    y = y.to(dtype).reshape((WARPGROUP_ROWS // 16, 2, 8, COLUMNS))
    gate, up = y.permute((0, 2, 3, 1)).split()
    gate = approximate_activation(gate.to(gl.float32), ACTIVATION).to(dtype)
    return (gate.to(gl.float32) * up.to(gl.float32)).to(dtype).reshape((WARPGROUP_ROWS // 2, COLUMNS))


@gluon.jit
def load_residual(residual, m0, n0, M, N, COLUMNS: gl.constexpr):
    """[COLUMNS, 64] of the residual, sixteen bytes a load."""
    WIDTH: gl.constexpr = 128 // residual.dtype.element_ty.primitive_bitwidth
    layout: gl.constexpr = gl.BlockedLayout(
        [1, WIDTH], [WIDTH // 2, WARPGROUP_ROWS // WIDTH], [WARPGROUP_WARPS, 1], [1, 0]
    )
    m = m0 + gl.arange(0, COLUMNS, gl.SliceLayout(1, layout))
    n = n0 + gl.arange(0, WARPGROUP_ROWS, gl.SliceLayout(0, layout))
    inside = (m < M)[:, None] & (n < N)[None, :]
    return gl.load(residual + m.to(gl.int64)[:, None] * N + n[None, :], mask=inside, other=0.0)


@gluon.constexpr_function
def sum_layout(columns, operand_bits):
    """The layout of a warpgroup's sums [64, columns]."""
    return gl.NVMMADistributedLayout([3, 0], [WARPGROUP_WARPS, 1], [16, columns, 256 // operand_bits])


@gluon.jit
def load_row_scales(g, n0, layout: gl.constexpr):
    """sW of 64 channels, for sums of this layout."""
    n = n0 + gl.arange(0, WARPGROUP_ROWS, gl.SliceLayout(1, layout))
    sw = gl.load(g.w.scale + n, mask=n < g.N, other=0.0)
    if g.w.LIFT > 1:
        sw = sw * (1 / g.w.LIFT)
    return sw


@gluon.jit
def load_token_scales(g, m0, layout: gl.constexpr, COLUMNS: gl.constexpr):
    """sA of as many tokens, for sums of this layout."""
    m = m0 + gl.arange(0, COLUMNS, gl.SliceLayout(0, layout))
    return gl.load(g.x.scale + m, mask=m < g.M, other=0.0)


@gluon.jit
def load_factors(g, m0, n0, COLUMNS: gl.constexpr):
    """What `epilogue` multiplies the sums [64, COLUMNS] by, and what it adds to them, as far as there is any.

    A tuple of sA, sW and the residual.
    """
    layout: gl.constexpr = sum_layout(COLUMNS, g.x.data.dtype.primitive_bitwidth)
    factors = ()
    if g.x.scale is not None:
        factors = factors + (load_token_scales(g, m0, layout, COLUMNS),)
    if g.w.scale is not None:
        factors = factors + (load_row_scales(g, n0, layout),)
    if g.out.residual is not None:
        factors = factors + (load_residual(g.out.residual, m0, n0, g.M, g.N, COLUMNS),)
    return factors


@gluon.jit
def epilogue(total, early, staging, g, m0, n0, WARPGROUP: gl.constexpr, COLUMN: gl.constexpr = 0):
    """Scales sums [64, m], adds bias, rounds, gates or adds the residual, and has TMA store them by way of `staging`.

    y[m, n] = t[m, n] sA[m] sW[n] + b[n], of as many columns at once as a staging buffer has. COLUMN: of the tile, the
    first of these. early: what `load_factors` gave of its buffer, or an empty tuple where that is left to do. Gives the
    same of the columns behind, where the tile has some: it is on its way while the last of these are scaled.
    """
    COLUMNS: gl.constexpr = total.shape[1]
    if COLUMNS > staging.shape[1]:
        left, right = total.reshape((WARPGROUP_ROWS, 2, COLUMNS // 2)).permute((0, 2, 1)).split()
        behind = epilogue(left, early, staging, g, m0, n0, WARPGROUP, COLUMN)
        return epilogue(right, behind, staging, g, m0, n0, WARPGROUP, COLUMN + COLUMNS // 2)
    else:
        behind = ()
        if len(early) == 0:
            early = load_factors(g, m0 + COLUMN, n0, COLUMNS)
        elif COLUMN + COLUMNS < g.BLOCK_M:
            behind = load_factors(g, m0 + COLUMN + COLUMNS, n0, COLUMNS)
        layout: gl.constexpr = sum_layout(COLUMNS, g.x.data.dtype.primitive_bitwidth)
        y = gl.convert_layout(total, layout, assert_trivial=True).to(gl.float32)
        n = n0 + gl.arange(0, WARPGROUP_ROWS, gl.SliceLayout(1, layout))
        if g.x.scale is not None:
            y = y * early[0][None, :]
        if g.w.scale is not None:
            y = y * early[1 if g.x.scale is not None else 0][:, None]
        if g.out.bias is not None:
            y = y + gl.load(g.out.bias + n, mask=n < g.N, other=0.0)[:, None]
        if g.out.ACTIVATION != "none":
            y = gate_sums(y, g.out.ACTIVATION, staging.dtype)
        BUFFERS: gl.constexpr = staging_buffers(g.BLOCK_N, g.BLOCK_M, g.x.data.dtype.primitive_bitwidth)
        buffer = staging.index(WARPGROUP * BUFFERS + COLUMN // COLUMNS % BUFFERS)
        tma.store_wait(BUFFERS - 1 if COLUMN > 0 else 0)  # what was sent before has left the buffer
        partition_barrier()
        buffer.permute((1, 0)).store(y.to(staging.dtype))
        if g.out.residual is not None:
            partition_barrier()
            r = early[len(early) - 1]
            y = buffer.load(r.type.layout).to(gl.float32) + r.to(gl.float32)
            buffer.store(y.to(staging.dtype))
        fence_async_shared()
        partition_barrier()
        column = n0
        if g.tiles is not None:  # of the expert
            column = n0 % g.columns
        tma_store(g.out.data, [m0 + COLUMN, column // 2 if g.out.ACTIVATION != "none" else column], buffer)
        return behind
