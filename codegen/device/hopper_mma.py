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
    COLUMNS tokens of its tile; its stages are first .. last - 1; k: stages of the program's units before. TILE_OF:
    `tile_of`, or `expert_tile_of` of a grouped GEMM. There, of a tile of many rows at most half of which are of a pair,
    the other half is neither multiplied nor stored.
    """
    WARPGROUPS: gl.constexpr = g.BLOCK_N // WARPGROUP_ROWS  # of a slice
    FEW: gl.constexpr = g.BLOCK_M <= shared.staging.shape[1]  # tokens: their sums leave at once
    HALVES: gl.constexpr = g.tiles is not None and not FEW
    if HALVES:
        gl.static_assert(g.SPLIT == 1 and g.K_SLICES == 1, "what is added up has the sizes of a tile")
    k = 0
    number = 0  # of units before
    for unit in range(gl.program_id(0), g.units, gl.num_programs(0)):
        tile, m0, n0, first, last = TILE_OF(unit, g)
        n0 += WARPGROUP % WARPGROUPS * WARPGROUP_ROWS
        early = ()
        if FEW and WARPGROUP < WARPGROUPS:
            start = (g.K_SLICES - k % g.K_SLICES) % g.K_SLICES  # stages before the first of its own
            if first + start < last:  # with X there is all that the kernel ahead wrote
                mbarrier.wait(shared.full.index((k + start) % g.STAGES), (k + start) // g.STAGES & 1)
            early = load_factors(g, m0, n0, g.BLOCK_M)
        if HALVES and filled_rows(m0, g) <= g.BLOCK_M // 2:
            part = SUM_UNIT(g, shared, n0, first, last, k, WARPGROUP, g.BLOCK_M // 2)
            epilogue(part, early, shared.staging.index(WARPGROUP), g, m0, n0)
        else:
            total = SUM_UNIT(g, shared, n0, first, last, k, WARPGROUP, g.BLOCK_M)
            total = add_teams(total, shared, number, g, WARPGROUP)
            if WARPGROUP < WARPGROUPS:  # of the first slice
                total, is_last = add_partials(total, g, unit, tile, WARPGROUP)
                if is_last:
                    epilogue(total, early, shared.staging.index(WARPGROUP), g, m0, n0)
        k += last - first
        number += 1
    tma.store_wait(0)
