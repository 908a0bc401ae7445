"""An MMA partition of the kernel for compute capability 9.0: a warpgroup multiplies what the load partition brings."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from .hopper_epilogue import epilogue, load_factors
from .hopper_operands import WARPGROUP_ROWS
from .hopper_schedule import filled_rows
from .hopper_split_k import add_partials, add_teams


@gluon.jit
def mma_partition(SUM_UNIT: gl.constexpr, TILE_OF: gl.constexpr, WARPGROUP: gl.constexpr, g, shared):
    """A warpgroup: its 64 channels of every tile of this program, and its slice's share of the stages.

    `SUM_UNIT(g, shared, n0, first, last, k, WARPGROUP, COLUMNS)` gives its sums [64, COLUMNS] of a unit, of the first
    COLUMNS tokens of its tile, as a tuple: one tensor, or two of a tile of 192. Its stages are first .. last - 1; k:
    stages of the program's units before. TILE_OF: `tile_of`, or `expert_tile_of` of a grouped GEMM. There, of a tile of
    many rows at most half of which are of a pair, the other half is neither multiplied nor stored.

    What the epilogue takes besides the sums is loaded ahead of them, where registers hold it.
    """
    WARPGROUPS: gl.constexpr = g.BLOCK_N // WARPGROUP_ROWS  # of a slice
    AT_ONCE: gl.constexpr = g.BLOCK_M if g.BLOCK_M <= shared.staging.shape[1] else shared.staging.shape[1]
    FULL: gl.constexpr = WARPGROUPS * g.K_SLICES == 4 or (g.x.rest is not None and g.out.residual is not None)
    EARLY: gl.constexpr = g.BLOCK_M == AT_ONCE or (g.x.scale is not None and not FULL)
    HALVES: gl.constexpr = g.tiles is not None and g.BLOCK_M > AT_ONCE
    if HALVES or g.x.rest is not None:
        gl.static_assert(g.SPLIT == 1 and g.K_SLICES == 1, "what is added up has the sizes of a tile")
    k = 0
    number = 0  # of units before
    for unit in range(gl.program_id(0), g.units, gl.num_programs(0)):
        tile, m0, n0, first, last = TILE_OF(unit, g)
        n0 += WARPGROUP % WARPGROUPS * WARPGROUP_ROWS
        early = ()
        if EARLY and WARPGROUP < WARPGROUPS:
            start = (g.K_SLICES - k % g.K_SLICES) % g.K_SLICES  # stages before the first of its own
            if first + start < last:  # with X there is all that the kernel ahead wrote
                mbarrier.wait(shared.full.index((k + start) % g.STAGES), (k + start) // g.STAGES & 1)
            early = load_factors(g, m0, n0, AT_ONCE)
        if HALVES and filled_rows(m0, g) <= g.BLOCK_M // 2:
            half = SUM_UNIT(g, shared, n0, first, last, k, WARPGROUP, g.BLOCK_M // 2)
            epilogue(half[0], early, shared.staging, g, m0, n0, WARPGROUP)
        else:
            sums = SUM_UNIT(g, shared, n0, first, last, k, WARPGROUP, g.BLOCK_M)
            if len(sums) > 1:
                behind = epilogue(sums[0], early, shared.staging, g, m0, n0, WARPGROUP)
                epilogue(sums[1], behind, shared.staging, g, m0, n0, WARPGROUP, sums[0].shape[1])
            else:
                total = add_teams(sums[0], shared, number, g, WARPGROUP)
                if WARPGROUP < WARPGROUPS:  # of the first slice
                    total, is_last = add_partials(total, g, unit, tile, WARPGROUP)
                    if is_last:
                        epilogue(total, early, shared.staging, g, m0, n0, WARPGROUP)
        k += last - first
        number += 1
    tma.store_wait(0)
