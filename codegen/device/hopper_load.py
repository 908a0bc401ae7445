"""The load partition of the kernel for compute capability 9.0: one warp that asks TMA for stages."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .hopper_operands import WARPGROUP_ROWS
from .hopper_schedule import K_BLOCK
from .hopper_shared import tma_load


@gluon.jit
def load_weights(g, shared, slot, n0, stage, inside):
    """Asks for the weights of a stage, and their groups' scales, into `slot`; `full` also expects the stage's X."""
    WARPGROUPS: gl.constexpr = g.BLOCK_N // WARPGROUP_ROWS
    WEIGHT_BYTES: gl.constexpr = K_BLOCK // 8 * g.w.BITS + (2 if g.w.group_scale is not None else 0)
    X_BYTES: gl.constexpr = K_BLOCK // 8 * g.x.data.dtype.primitive_bitwidth
    full = shared.full.index(slot)
    mbarrier.expect(full, g.BLOCKS * (g.BLOCK_N * WEIGHT_BYTES + g.BLOCK_M * X_BYTES), pred=inside)
    for warpgroup in gl.static_range(WARPGROUPS):
        row = n0 + warpgroup * WARPGROUP_ROWS
        codes = shared.w.index(slot * WARPGROUPS + warpgroup)
        if g.w.BITS < 4:
            tma_load(g.w.codes, [row, stage * g.w.codes.block_shape[1]], full, codes, pred=inside)
        else:
            tma_load(g.w.codes, [stage * g.BLOCKS, row, 0], full, codes, pred=inside)
        if g.w.low_codes is not None:
            codes = shared.low_codes.index(slot * WARPGROUPS + warpgroup)
            tma_load(g.w.low_codes, [row, stage * g.w.low_codes.block_shape[1]], full, codes, pred=inside)
    if g.w.group_scale is not None:
        for block in gl.static_range(g.BLOCKS):
            group = (stage * g.BLOCKS + block) // (g.w.GROUP // K_BLOCK)
            tma_load(g.w.group_scale, [group, n0], full, shared.group_scale.index(slot * g.BLOCKS + block), pred=inside)


@gluon.jit
def load_tokens(g, shared, slot, m0, stage, inside):
    """Asks for the X of a stage into `slot`."""
    k0 = stage * g.x.data.block_shape[0]
    tma_load(g.x.data, [k0, m0, 0], shared.full.index(slot), shared.x.index(slot), pred=inside)
    if g.x.rest is not None:
        behind = m0 + g.x.data.block_shape[1]
        tma_load(g.x.rest, [k0, behind, 0], shared.full.index(slot), shared.x_rest.index(slot), pred=inside)


@gluon.jit
def load_partition(TILE_OF: gl.constexpr, g, shared):
    """Keeps STAGES stages of the program's units in flight; TILE_OF: see `mma_partition`.

    The weights of the first ones do not wait for the kernel before, nor do the next kernel's, where there is room. A
    grouped GEMM has to wait for its tiles, and lets the next kernel begin behind its last load: programs that only wait
    beside its own cost more than an early begin gives (docs/experts.md).
    """
    if g.tiles is None:
        gdc_launch_dependents()
    unit = gl.program_id(0)
    _, m0, n0, first, last = TILE_OF(unit, g)
    for early in gl.static_range(g.STAGES):
        stage = first + early
        load_weights(g, shared, early, n0, stage, stage < last)
    gdc_wait()
    for early in gl.static_range(g.STAGES):
        stage = first + early
        load_tokens(g, shared, early, m0, stage, stage < last)
    prefetched = last - first if last - first < g.STAGES else g.STAGES
    k = 0  # stages of this program so far
    for unit in range(gl.program_id(0), g.units, gl.num_programs(0)):
        _, m0, n0, first, last = TILE_OF(unit, g)
        for stage in range(first, last):
            if k >= prefetched:
                slot = k % g.STAGES
                mbarrier.wait(shared.empty.index(slot), (k // g.STAGES & 1) ^ 1)
                load_weights(g, shared, slot, n0, stage, True)
                load_tokens(g, shared, slot, m0, stage, True)
            k += 1
    if g.tiles is not None:
        gdc_launch_dependents()
