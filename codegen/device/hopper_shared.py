"""Shared memory, its barriers and TMA on compute capability 9.0, in Gluon: what differs between Triton's versions."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

tma_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared  # the latter up to Triton 3.6
tma_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
partition_barrier = getattr(gl, "thread_barrier", None) or gl.barrier  # of the threads of a partition
REINTERPRETS = gl.constexpr(hasattr(gl.shared_memory_descriptor, "reinterpret"))


@gluon.jit
def reinterpret(buffer, SHAPE: gl.constexpr, layout: gl.constexpr):
    """The bytes of `buffer` as SHAPE of the same dtype."""
    if REINTERPRETS:
        return buffer.reinterpret(buffer.dtype, SHAPE, layout)
    else:
        return buffer._reinterpret(buffer.dtype, SHAPE, layout)


@gluon.jit
def operand_tiles(buffer, COUNT: gl.constexpr, HEIGHT: gl.constexpr, WIDTH: gl.constexpr):
    """[COUNT, HEIGHT, WIDTH]: tiles in a row, each swizzled within its rows as the tensor cores read it."""
    bits: gl.constexpr = buffer.dtype.primitive_bitwidth
    return reinterpret(buffer, [COUNT, HEIGHT, WIDTH], gl.NVMMASharedLayout(WIDTH * bits // 8, bits))


@gluon.jit
def operand_of(tiles, number: gl.constexpr, COLUMNS: gl.constexpr):
    """The first COLUMNS rows of a tile of `operand_tiles`, as [WIDTH, COLUMNS]."""
    WIDTH: gl.constexpr = tiles.shape[2]
    tile = tiles.index(number)
    if COLUMNS < tiles.shape[1]:
        tile = operand_tiles(tile, tile.shape[0] // COLUMNS, COLUMNS, WIDTH).index(0)
    return tile.permute((1, 0))


@gluon.jit
def allocate_boxes(desc, COUNT: gl.constexpr):
    """[COUNT, *box]: buffers of what a tensor descriptor's boxes hold."""
    return gl.allocate_shared_memory(desc.dtype, [COUNT] + desc.block_shape, desc.layout)


@gluon.jit
def allocate_barriers(COUNT: gl.constexpr):
    """int64 [COUNT, 1]: barriers, to be initialized."""
    return gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())


@gluon.jit
def invalidate_barriers(barriers, COUNT: gl.constexpr):
    """Behind their last use, where a program goes on: until then nothing else may lie in their memory (PTX, mbarrier).

    Triton takes memory for free once it is read for the last time, which for a barrier is the wait.
    """
    for index in gl.static_range(COUNT):
        mbarrier.invalidate(barriers.index(index))


@gluon.jit
def init_barrier_pairs(full, empty, COUNT: gl.constexpr, READERS: gl.constexpr):
    """Barriers that hand COUNT buffers over and back: a phase of `full` takes one arrival, of `empty` READERS."""
    for index in gl.static_range(COUNT):
        mbarrier.init(full.index(index), count=1)
        mbarrier.init(empty.index(index), count=READERS)
