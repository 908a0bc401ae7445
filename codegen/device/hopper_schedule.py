"""Which tile of Y, and which of its stages, a unit of work is."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

RASTER_WIDTH = gl.constexpr(8)  # tiles of channels that are multiplied with all tokens before the next ones
K_BLOCK = gl.constexpr(128)  # input channels of a block


@gluon.jit
def tile_of(unit, g):
    """Of a unit: its tile's number, first token and first channel, and its first stage and the one behind its last."""
    BLOCK_N: gl.constexpr = g.BLOCK_N
    BLOCK_M: gl.constexpr = g.BLOCK_M
    STAGE: gl.constexpr = K_BLOCK * g.BLOCKS
    stages = (g.K + STAGE - 1) // STAGE
    tile = unit // g.SPLIT
    share = unit % g.SPLIT
    in_raster = RASTER_WIDTH * ((g.M + BLOCK_M - 1) // BLOCK_M)
    start = tile // in_raster * RASTER_WIDTH
    width = (g.N + BLOCK_N - 1) // BLOCK_N - start
    width = width if width < RASTER_WIDTH else RASTER_WIDTH
    m0 = tile % in_raster // width * BLOCK_M
    n0 = (start + tile % in_raster % width) * BLOCK_N
    return tile, m0, n0, share * stages // g.SPLIT, (share + 1) * stages // g.SPLIT


@gluon.jit
def expert_tile_of(unit, g):
    """`tile_of` of a grouped GEMM: tiles of one expert's rows of X follow one another, each with all channels.

    A unit that there is not has no stages.
    """
    STAGE: gl.constexpr = K_BLOCK * g.BLOCKS
    wide = (g.columns + g.BLOCK_N - 1) // g.BLOCK_N
    n0 = gl.load(g.tiles + 1 + unit // wide * 2) * g.columns + unit % wide * g.BLOCK_N
    stages = (g.K + STAGE - 1) // STAGE
    return unit, unit // wide * g.BLOCK_M, n0, 0, stages if unit < g.units else 0


@gluon.jit
def filled_rows(m0, g):
    """How many rows of X from m0 on, the first of an expert's tile, are of a pair."""
    return gl.load(g.tiles + 2 + m0 // g.BLOCK_M * 2)
