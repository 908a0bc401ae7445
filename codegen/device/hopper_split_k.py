"""Sums of a tile whose K range several warpgroups of a CTA (slice-K), or several units (split-K), share."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

from .hopper_operands import WARPGROUP_ROWS
from .hopper_shared import partition_barrier


@gluon.jit
def add_teams(total, shared, number, g, WARPGROUP: gl.constexpr):
    """The sums of the K slices [64, BLOCK_M], added by the first of them in their order.

    number: of the program's units before.
    """
    WARPGROUPS: gl.constexpr = g.BLOCK_N // WARPGROUP_ROWS
    K_SLICE: gl.constexpr = WARPGROUP // WARPGROUPS
    for other in gl.static_range(1, g.K_SLICES):
        buffer = (other - 1) * WARPGROUPS + WARPGROUP % WARPGROUPS
        sums = shared.slice_sums.index(buffer)
        if K_SLICE == other:
            mbarrier.wait(shared.slice_empty.index(buffer), (number & 1) ^ 1)
            sums.store(total)
            partition_barrier()
            mbarrier.arrive(shared.slice_full.index(buffer), count=1)
        elif K_SLICE == 0:
            mbarrier.wait(shared.slice_full.index(buffer), number & 1)
            total += sums.load(total.type.layout)
            partition_barrier()
            mbarrier.arrive(shared.slice_empty.index(buffer), count=1)
    return total


@gluon.jit
def add_partials(total, g, unit, tile, WARPGROUP: gl.constexpr):
    """The sums [64, BLOCK_M] of the units of a tile, added by the last to come; whether this one is it.

    tile: its number. Each unit writes its sums down and counts itself. Three and more sums of floats are added in the
    order of their units, which no other order replaces.
    """
    is_last = True
    if g.SPLIT > 1:
        layout: gl.constexpr = total.type.layout
        COLUMNS: gl.constexpr = total.shape[1]
        WARPGROUPS: gl.constexpr = g.BLOCK_N // WARPGROUP_ROWS
        share = unit % g.SPLIT
        counter = tile * WARPGROUPS + WARPGROUP
        counters = g.units // g.SPLIT * WARPGROUPS
        row = gl.arange(0, WARPGROUP_ROWS, gl.SliceLayout(1, layout))
        cell = row[:, None] * COLUMNS + gl.arange(0, COLUMNS, gl.SliceLayout(0, layout))[None, :]
        place = g.split.partials + counter.to(gl.int64) * (WARPGROUP_ROWS * COLUMNS) + cell
        step = counters.to(gl.int64) * (WARPGROUP_ROWS * COLUMNS)
        gl.store(place + share * step, total)
        partition_barrier()
        is_last = gl.atomic_add(g.split.counters + counter, 1, sem="acq_rel") == g.SPLIT - 1
        if is_last:
            gl.store(g.split.counters + counter, 0)
            if g.SPLIT == 2 or total.dtype == gl.int32:
                for other in gl.static_range(1, g.SPLIT):
                    total += gl.load(place + (share + other) % g.SPLIT * step)
            else:
                total = gl.load(place)
                for other in gl.static_range(1, g.SPLIT):
                    total += gl.load(place + other * step)
    return total, is_last
