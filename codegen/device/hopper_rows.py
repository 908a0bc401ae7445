"""Activation quantization on compute capability 9.0: rotated bfloat16 rows with one symmetric scale each, in Gluon."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .hopper_rows_layouts import (
    in_channel_order,
    is_padded,
    mma_layout,
    read_layout,
    span_count,
    span_first,
    span_width,
    warps_across,
)
from .hopper_rows_operands import (
    HopperRowPlan,
    ProgramRows,
    operand_start,
    permuted_start,
    rest_start,
    rotation0_start,
    rotation1_start,
    tile_rows,
    tile_start,
)
from .hopper_rows_permute import load_places, store_permuted, store_places
from .hopper_rows_shared import load_rotation_cell, operand_view, shared_base, store_rotation
from .hopper_rows_source import (
    load_gain_pieces,
    load_source,
    load_sources,
    source_values,
    store_source,
)
from .hopper_rows_statistics import (
    block_drop,
    find_row_peaks,
    lift_rows,
    rms_factors,
    row_words,
    store_product_peaks,
    value_of_row,
)
from .hopper_shared import partition_barrier
from .row_scales import ROUNDER, SMALLEST_SCALE


@gluon.jit
def quantize_rows_hopper(source, transform, results, form, sizes, M):
    """Codes and scales of rotated rows: q = round(y / s), y = x R0 or (x R0)[P] R1, s = CLIP max|y| / REACH.

    source: `RowSource`; transform: `RowTransform`; results: `RowResults`; form: `CodeFormat`; sizes: `HopperRowSizes`.
    As many programs as run at once walk the rows, ROWS at a time. Rotations stay in shared memory, the places to which
    the permutation moves channels in registers.
    """
    PERMUTE: gl.constexpr = transform.rotation1 is not None
    SIZE: gl.constexpr = sizes.last.SIZE
    FIRST: gl.constexpr = sizes.first.HEAD + sizes.first.TAIL
    LAST: gl.constexpr = sizes.last.HEAD + sizes.last.TAIL
    PIECE: gl.constexpr = 2 * sizes.WARPS if source.up is not None else 32
    SLOTS: gl.constexpr = sizes.K // 128 if sizes.ROWS == 1 else sizes.ROWS * sizes.first.SLOTS
    PIECES: gl.constexpr = (SLOTS + PIECE - 1) // PIECE
    AHEAD: gl.constexpr = PIECES if source.gain is not None or sizes.READ > PIECES else sizes.READ
    OPERAND: gl.constexpr = operand_start(PERMUTE, FIRST, LAST, SIZE, transform.FINE)
    REST: gl.constexpr = rest_start(PERMUTE, LAST, SIZE)
    R0: gl.constexpr = rotation0_start(PERMUTE, FIRST, LAST, SIZE, transform.FINE)
    PEAKS: gl.constexpr = rotation1_start(R0, SIZE, span_count(SIZE) if PERMUTE else 0, 0)
    walk_rows(
        source,
        transform,
        results,
        form,
        sizes,
        HopperRowPlan(PIECE, PIECES, AHEAD, OPERAND, REST, R0, PEAKS, transform.FINE),
        M,
    )


@gluon.jit
def walk_rows(source, transform, results, form, sizes, plan, M):
    """Reads, rotates and quantizes ROWS rows at a time; plan: `HopperRowPlan`."""
    space = gl.allocate_shared_memory(gl.float16, [plan.PEAKS + 4, 512], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    base = shared_base()
    operand = base + plan.OPERAND * 1024
    peaks = base + plan.PEAKS * 1024  # of the blocks of X
    squares = peaks + 1024
    last_peaks = peaks + 2048
    r0 = operand_view(space, plan.R0, 128, 128)
    places = place_transform(transform, space, base, plan, sizes)
    gains = ()
    if source.gain is not None:
        gains = load_gain_pieces(source.gain, plan.PIECE, sizes)
    gdc_launch_dependents()
    gdc_wait()

    if sizes.NEXT:
        held = load_sources(source, ProgramRows(gl.program_id(0) * sizes.ROWS, M), plan, sizes)
    for group in range(gl.program_id(0), (M + sizes.ROWS - 1) // sizes.ROWS, gl.num_programs(0)):
        rows = ProgramRows(group * sizes.ROWS, M)
        following = ProgramRows(group * sizes.ROWS + gl.num_programs(0) * sizes.ROWS, M)
        if not sizes.NEXT:
            held = load_sources(source, rows, plan, sizes)
        factors = ()
        if source.gain is not None:
            factors = rms_factors(held, squares, source.eps, plan.PIECE, sizes)
        for piece in gl.static_range(plan.PIECES):
            now = held[0]
            held = held[1:]
            if piece + plan.AHEAD < plan.PIECES:
                held = held + (load_source(source, rows, piece + plan.AHEAD, plan.PIECE, sizes),)
            elif sizes.NEXT:
                ahead = load_source(source, following, piece + plan.AHEAD - plan.PIECES, plan.PIECE, sizes)
                held = held + (ahead,)
            y = source_values(source, now, gains, factors, piece, plan.PIECE, sizes)
            store_source(y, operand, peaks, piece, plan.PIECE, sizes)
        fence_async_shared()
        partition_barrier()

        products = multiply_blocks(space, r0, plan.OPERAND, sizes)
        row_peaks = find_row_peaks(peaks, sizes)
        rotated = ()
        for tile in gl.static_range(2 if sizes.first.TAIL else 1):
            y = in_channel_order(warpgroup_mma_wait(0, deps=[products[tile]]), sizes.WARPS)
            rotated = rotated + (lift_rows(y, peaks, row_peaks, tile * sizes.first.HEAD, sizes),)
        if transform.rotation1 is not None:
            sums = rotate_permuted(rotated, places, space, base, plan, sizes)
        else:
            sums = (rotated,)
        for tile in gl.static_range(2 if sizes.last.TAIL else 1):
            store_product_peaks(sums, last_peaks, tile, sizes)
        partition_barrier()
        inverses = store_row_scales(results.scale, last_peaks, row_peaks, rows, sizes, form)
        for span in gl.static_range(len(sums)):
            for tile in gl.static_range(2 if sizes.last.TAIL else 1):
                store_row_codes(sums[span][tile], inverses, results.codes, rows, span, tile, sizes, form)


@gluon.jit
def place_transform(transform, space, base, plan, sizes):
    """Writes rotations into shared memory; returns the places to which the permutation moves channels, or none."""
    cell0 = load_rotation_cell(transform.rotation0, 0, 0, 128, 128, 128, sizes.WARPS)
    places = ()
    if transform.rotation1 is not None:
        cells = load_rotation1(transform.rotation1, sizes)
        store_places(transform.permutation, base, sizes)
        store_rotation(cell0, space, plan.R0, sizes.first.HEAD, sizes.WARPS)
        store_rotation1(cells, space, plan.R0, sizes)
        partition_barrier()
        for tile in gl.static_range(2 if sizes.first.TAIL else 1):
            places = places + (load_places(base, tile, plan.REST * 1024 - 1024, sizes),)
        partition_barrier()
        if is_padded(sizes.last.SIZE):
            clear_padding(space, plan, sizes)
    else:
        store_rotation(cell0, space, plan.R0, sizes.first.HEAD, sizes.WARPS)
    return places


@gluon.jit
def rotate_permuted(rotated, places, space, base, plan, sizes):
    """y[P] R1 of the sums y of the first product, a tuple by span of columns, each of head and tail."""
    if plan.OPERAND == 0:
        partition_barrier()  # before the first operand is overwritten
    for tile in gl.static_range(len(rotated)):
        store_permuted(rotated[tile], places[tile], base, plan.REST * 1024, plan.FINE)
    fence_async_shared()
    partition_barrier()
    return wait_for_spans(multiply_spans(space, plan, sizes), sizes)


@gluon.jit
def load_rotation1_cell(rotation, row: gl.constexpr, column: gl.constexpr, sizes):
    """The rows of one span and the columns of another of the second rotation."""
    SIZE: gl.constexpr = sizes.last.SIZE
    HEIGHT: gl.constexpr = span_width(SIZE, row)
    WIDTH: gl.constexpr = span_width(SIZE, column)
    I0: gl.constexpr = span_first(SIZE, row)
    J0: gl.constexpr = span_first(SIZE, column)
    return load_rotation_cell(rotation, I0, J0, SIZE, HEIGHT, WIDTH, sizes.WARPS)


@gluon.jit
def load_rotation1(rotation, sizes):
    """The cells of the second rotation, a tuple by row and column of spans."""
    cells = ()
    for row in gl.static_range(span_count(sizes.last.SIZE)):
        for column in gl.static_range(span_count(sizes.last.SIZE)):
            cells = cells + (load_rotation1_cell(rotation, row, column, sizes),)
    return cells


@gluon.jit
def store_rotation1(cells, space, R0: gl.constexpr, sizes):
    """Writes them behind the first rotation, each of its own operand."""
    for row in gl.static_range(span_count(sizes.last.SIZE)):
        for column in gl.static_range(span_count(sizes.last.SIZE)):
            cell = cells[row * span_count(sizes.last.SIZE) + column]
            store_rotation(cell, space, rotation1_start(R0, sizes.last.SIZE, row, column), sizes.last.HEAD, sizes.WARPS)


@gluon.jit
def clear_padding(space, plan, sizes):
    """Zeros in the columns of the last span, which stay in those beyond a block."""
    SPAN: gl.constexpr = span_count(sizes.last.SIZE) - 1
    WIDTH: gl.constexpr = span_width(sizes.last.SIZE, SPAN)
    START: gl.constexpr = permuted_start(sizes.last.SIZE, sizes.last.HEAD + sizes.last.TAIL, SPAN)
    nothing = gl.zeros((sizes.last.HEAD, WIDTH), gl.float16, read_layout(sizes.WARPS))
    operand_view(space, START, sizes.last.HEAD, WIDTH).store(nothing)
    if plan.FINE:
        operand_view(space, plan.REST + START, sizes.last.HEAD, WIDTH).store(nothing)


@gluon.jit
def multiply_blocks(space, r0, OPERAND: gl.constexpr, sizes):
    """Starts the first products [n, 128], blocks times R0, a tuple of head and tail."""
    products = ()
    for tile in gl.static_range(2 if sizes.first.TAIL else 1):
        products = products + (multiply_tile(space, r0, OPERAND, tile, sizes),)
    return products


@gluon.jit
def multiply_tile(space, r0, OPERAND: gl.constexpr, tile: gl.constexpr, sizes):
    """Starts the product of one tile."""
    ROWS: gl.constexpr = tile_rows(sizes.first.HEAD, sizes.first.TAIL, tile)
    nothing = gl.zeros((ROWS, 128), gl.float32, mma_layout(ROWS, 128, sizes.WARPS))
    operand = operand_view(space, OPERAND + tile * sizes.first.HEAD // 4, ROWS, 128)
    return warpgroup_mma(operand, r0, nothing, use_acc=False, is_async=True)


@gluon.jit
def multiply_spans(space, plan, sizes):
    """Starts the second products, permuted blocks times R1: a tuple by span of columns, each of head and tail."""
    products = ()
    for span in gl.static_range(span_count(sizes.last.SIZE)):
        tiles = ()
        for tile in gl.static_range(2 if sizes.last.TAIL else 1):
            tiles = tiles + (multiply_span(space, span, tile, plan, sizes),)
        products = products + (tiles,)
    return products


@gluon.jit
def multiply_span(space, span: gl.constexpr, tile: gl.constexpr, plan, sizes):
    """Starts the products of a tile's blocks with a span of columns of R1, one for each span of its rows."""
    ROWS: gl.constexpr = tile_rows(sizes.last.HEAD, sizes.last.TAIL, tile)
    WIDTH: gl.constexpr = span_width(sizes.last.SIZE, span)
    y = gl.zeros((ROWS, WIDTH), gl.float32, mma_layout(ROWS, WIDTH, sizes.WARPS))
    for row in gl.static_range(span_count(sizes.last.SIZE)):
        y = add_product(y, space, 0, row, span, tile, plan, sizes)
        if plan.FINE:
            y = add_product(y, space, plan.REST, row, span, tile, plan, sizes)
    return y


@gluon.jit
def add_product(
    y, space, operands: gl.constexpr, row: gl.constexpr, span: gl.constexpr, tile: gl.constexpr, plan, sizes
):
    """Starts y + a tile of a span of the second operand, which starts at kilobyte `operands`, times a cell of R1."""
    ROWS: gl.constexpr = tile_rows(sizes.last.HEAD, sizes.last.TAIL, tile)
    DEPTH: gl.constexpr = span_width(sizes.last.SIZE, row)
    WIDTH: gl.constexpr = span_width(sizes.last.SIZE, span)
    START: gl.constexpr = operands + tile_start(sizes.last.SIZE, sizes.last.HEAD, sizes.last.TAIL, row, tile)
    operand = operand_view(space, START, ROWS, DEPTH)
    r1 = operand_view(space, rotation1_start(plan.R0, sizes.last.SIZE, row, span), DEPTH, WIDTH)
    return warpgroup_mma(operand, r1, y, is_async=True)


@gluon.jit
def wait_for_spans(products, sizes):
    """The second products [n, m] with their columns in channel order."""
    sums = ()
    for span in gl.static_range(len(products)):
        tiles = ()
        for tile in gl.static_range(2 if sizes.last.TAIL else 1):
            y = warpgroup_mma_wait(0, deps=[products[span][tile]])
            tiles = tiles + (in_channel_order(y, sizes.WARPS),)
        sums = sums + (tiles,)
    return sums


@gluon.jit
def store_row_scales(scale, last_peaks, row_peaks, rows, sizes, form):
    """Writes the scales of a program's rows; returns their reciprocals, a tuple."""
    H: gl.constexpr = warps_across(sizes.last.HEAD, sizes.WARPS)
    T: gl.constexpr = warps_across(sizes.last.TAIL or 64, sizes.WARPS)
    inverses = ()
    for r in gl.static_range(sizes.ROWS):
        largest = gl.max(row_words(last_peaks, r, sizes.last, H, T, sizes), axis=0).to(gl.float32, bitcast=True)
        largest = gl.where(row_peaks[r] >= 0x7F800000, float("nan"), largest)
        if form.CLIP == 1.0:
            s = gl.div_rn(largest, form.REACH)
        else:
            s = gl.div_rn(largest * form.CLIP, form.REACH)
        s = gl.where(s == 0.0, 1.0, s)
        inverses = inverses + (gl.div_rn(1.0, gl.maximum(s, SMALLEST_SCALE)),)
        if rows.first + r < rows.M:
            gl.store(scale + rows.first + r, gl.where(largest != 0.0, s * block_drop(row_peaks[r]), 1.0))
    return inverses


@gluon.jit
def store_row_codes(y, inverses, codes, rows, span: gl.constexpr, tile: gl.constexpr, sizes, form):
    """Writes the codes of y [n, m], a span of columns of the blocks of a tile."""
    layout: gl.constexpr = y.type.layout
    i = tile * sizes.last.HEAD + gl.arange(0, y.shape[0], gl.SliceLayout(1, layout))
    j = (span_first(sizes.last.SIZE, span) + gl.arange(0, y.shape[1], gl.SliceLayout(0, layout)))[None, :]
    row = rows.first + i // sizes.last.SLOTS
    block = i % sizes.last.SLOTS
    zeros = gl.zeros(y.shape, gl.float32, layout)
    inverse = zeros + value_of_row(inverses, i, sizes.last.SLOTS)[:, None]
    if form.CLIP == 1.0:
        v = gl.fma(y, inverse, zeros + ROUNDER)
    else:
        v = gl.minimum(gl.maximum(y * inverse, form.QMIN), form.QMAX) + ROUNDER
    q = v.to(gl.int32, bitcast=True).to(gl.int8)  # the integer is the sum's last bits
    inside = ((block < sizes.K // sizes.last.SIZE) & (row < rows.M))[:, None] & (j < sizes.last.SIZE)
    gl.store(codes + (row.to(gl.int64) * sizes.K + block * sizes.last.SIZE)[:, None] + j, q, mask=inside)
