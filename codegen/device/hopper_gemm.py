"""The kernel for compute capability 9.0: one warp loads stages, one to three warpgroups multiply them."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared

from .hopper_load import load_partition
from .hopper_mma import mma_partition
from .hopper_operands import WARPGROUP_ROWS, WARPGROUP_WARPS, allocate_shared

LOAD_REGISTERS = gl.constexpr(24)  # of a thread of the load partition


@gluon.jit
def gemm_warp_specialized(SUM_UNIT: gl.constexpr, TILE_OF: gl.constexpr, g, CTAS_PER_SM: gl.constexpr):
    """Y [M, N] = X W^T of `g`; SUM_UNIT, TILE_OF: see `mma_partition`.

    Registers of a further warpgroup: its share of what the load partition, which counts as four warps, leaves.
    """
    shared = allocate_shared(g)
    fence_async_shared()
    COUNT: gl.constexpr = g.BLOCK_N // WARPGROUP_ROWS * g.K_SLICES
    gl.static_assert(COUNT <= 4, "a program has at most four MMA partitions")
    gl.static_assert(g.STAGES % g.K_SLICES == 0, "a stage is always the same slice's")
    ALL: gl.constexpr = 65536 // (CTAS_PER_SM * 128 * (COUNT + 1)) // 8 * 8 * (COUNT + 1) - LOAD_REGISTERS
    EACH: gl.constexpr = ALL // (8 * COUNT) * 8
    if COUNT == 1:
        gl.warp_specialize(
            [
                (mma_partition, (SUM_UNIT, TILE_OF, gl.constexpr(0), g, shared)),
                (load_partition, (TILE_OF, g, shared)),
            ],
            [1],
            [LOAD_REGISTERS],
        )
    elif COUNT == 2:
        gl.warp_specialize(
            [
                (mma_partition, (SUM_UNIT, TILE_OF, gl.constexpr(0), g, shared)),
                (mma_partition, (SUM_UNIT, TILE_OF, gl.constexpr(1), g, shared)),
                (load_partition, (TILE_OF, g, shared)),
            ],
            [WARPGROUP_WARPS, 1],
            [EACH, LOAD_REGISTERS],
        )
    elif COUNT == 3:
        gl.warp_specialize(
            [
                (mma_partition, (SUM_UNIT, TILE_OF, gl.constexpr(0), g, shared)),
                (mma_partition, (SUM_UNIT, TILE_OF, gl.constexpr(1), g, shared)),
                (mma_partition, (SUM_UNIT, TILE_OF, gl.constexpr(2), g, shared)),
                (load_partition, (TILE_OF, g, shared)),
            ],
            [WARPGROUP_WARPS, WARPGROUP_WARPS, 1],
            [EACH, EACH, LOAD_REGISTERS],
        )
    else:
        gl.warp_specialize(
            [
                (mma_partition, (SUM_UNIT, TILE_OF, gl.constexpr(0), g, shared)),
                (mma_partition, (SUM_UNIT, TILE_OF, gl.constexpr(1), g, shared)),
                (mma_partition, (SUM_UNIT, TILE_OF, gl.constexpr(2), g, shared)),
                (mma_partition, (SUM_UNIT, TILE_OF, gl.constexpr(3), g, shared)),
                (load_partition, (TILE_OF, g, shared)),
            ],
            [WARPGROUP_WARPS, WARPGROUP_WARPS, WARPGROUP_WARPS, 1],
            [EACH, EACH, EACH, LOAD_REGISTERS],
        )
