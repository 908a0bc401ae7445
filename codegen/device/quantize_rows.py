"""Activation quantization: one pass over the rows of X, which are transformed, measured and rounded."""

import triton
import triton.language as tl

from .encode import encode
from .overlap import overlap_launches
from .rotation import load_rotation, permute_and_rotate, regroup, rotate, row_lifts
from .row_operands import RowTile, channels_of_places, real_cells
from .row_scales import at_least_smallest, find_scales, nvfp4_scale, nvfp4_unit
from .row_source import load_rows
from .row_statistics import abs_max, find_range


@triton.jit
def quantize_rows(source, transform, results, form, sizes, M, live, PDL: tl.constexpr):
    """Y [M, K] = rows of `source` through `transform`, written as `form` has them.

    source: `RowSource`; transform: `RowTransform`; results: `RowResults`; form: `CodeFormat`; sizes: `RowSizes`. A
    program has ROWS whole rows; rotated ones are lifted by powers of two, which what is stored of them lacks again.
    live: pointer int32 to how many of the rows are looked at, None of all M.
    """
    row = tl.program_id(0) * sizes.ROWS + tl.arange(0, sizes.ROWS)
    channel, real = channels_of_places(sizes.LENGTH, sizes.READ, sizes.READ_HELD, sizes.K)
    gains = None
    if source.gain is not None:
        gains = tl.load(source.gain + channel, mask=real, other=0.0)  # weights, which no kernel ahead writes
    overlap_launches(PDL)
    rows = M
    if live is not None:
        rows = tl.load(live)
    tile = RowTile(row, row < rows, row[:, None].to(tl.int64) * sizes.K, channel, real, M)
    y = load_rows(source, gains, tile, sizes.K, PDL)
    dtype: tl.constexpr = source.x.dtype.element_ty
    if transform.rotation0 is None:
        store_rows(y, None, tile, results, form, sizes, dtype)
    else:
        lift = row_lifts(y)
        r0 = load_rotation(transform.rotation0, 0, transform.BLOCK0, transform.BLOCK0, transform.BLOCK0)
        y = rotate(y * lift[:, None], r0, dtype == tl.float32)
        if transform.rotation1 is not None:
            y, tile = permute_and_rotate(y, tile, transform, sizes, transform.FINE or dtype == tl.float32)
        if sizes.REGROUP:
            y, tile = regroup(y, tile, transform, sizes, form)
        store_rows(y, tl.div_rn(1.0, lift), tile, results, form, sizes, tl.float32)


@triton.jit
def store_rows(y, drop, tile, results, form, sizes, dtype: tl.constexpr):
    """Writes y float32 [ROWS, GROUPED] as floats or codes.

    drop: what undoes a row's lift [ROWS], None of rows that were not lifted. dtype: the narrowest that holds y.
    """
    if form.NUMBER == "float":
        mask = real_cells(tile)
        if drop is not None:
            y = y * drop[:, None]
        tl.store(results.codes + tile.start + tile.channel[None, :], y.to(results.codes.dtype.element_ty), mask=mask)
    elif form.GROUP == 0:
        quantize_tokens(y, drop, tile, results, form, sizes, dtype)
    else:
        quantize_groups(y, drop, tile, results, form, sizes, dtype)


@triton.jit
def quantize_tokens(y, drop, tile, results, form, sizes, dtype: tl.constexpr):
    """Codes and one scale for each row."""
    low, high = find_range(y, 1, dtype, form.SYMMETRIC)
    s, z = find_scales(low, high, form)
    stored = stored_scale(s, drop, low, high, form)
    tl.store(results.scale + tile.row, stored, mask=tile.inside)
    if form.SYMMETRIC:
        q = encode(y, s[:, None], None, dtype == tl.float32, form)
    else:
        tl.store(results.zero + tile.row, z.to(tl.int8), mask=tile.inside)
        q = encode(y, s[:, None], z[:, None], dtype == tl.float32, form)
    store_codes(q, tile, results, form, sizes)


@triton.jit
def quantize_groups(y, drop, tile, results, form, sizes, dtype: tl.constexpr):
    """Codes and one scale for each group; of nvfp4 a unit of the scales for each row too."""
    COUNT: tl.constexpr = sizes.GROUPED // form.GROUP_HELD
    groups = tl.reshape(y, (sizes.ROWS, COUNT, form.GROUP_HELD))
    if form.NUMBER == "nvfp4":
        unit = nvfp4_unit(abs_max(y.to(dtype), 1), form)
        if drop is not None:
            tl.store(results.unit + tile.row, at_least_smallest(unit * drop), mask=tile.inside)
        else:
            tl.store(results.unit + tile.row, unit, mask=tile.inside)
        pattern, s = nvfp4_scale(abs_max(groups.to(dtype), 2), unit[:, None], form)
        store_codes(encode(groups, s[:, :, None], None, dtype == tl.float32, form), tile, results, form, sizes)
        stored = pattern.to(tl.uint8)
    else:
        if drop is not None:
            drop = drop[:, None]
        low, high = find_range(groups, 2, dtype, form.SYMMETRIC)
        s, z = find_scales(low, high, form)
        if form.SYMMETRIC:
            q = encode(groups, s[:, :, None], None, dtype == tl.float32, form)
        else:
            q = encode(groups, s[:, :, None], z[:, :, None], dtype == tl.float32, form)
        store_codes(q, tile, results, form, sizes)
        stored = stored_scale(s, drop, low, high, form)
    group = tl.arange(0, COUNT)
    mask = tile.inside[:, None] & (group < sizes.K // form.GROUP)[None, :]
    tl.store(results.scale + group[None, :] * tile.M + tile.row[:, None], stored, mask=mask)
    if not form.SYMMETRIC:
        tl.store(results.zero + group[None, :] * tile.M + tile.row[:, None], z.to(tl.int8), mask=mask)


@triton.jit
def stored_scale(s, drop, low, high, form):
    """What is stored for s: without the row's lift, 1 where all y are 0; of mxfp4 the pattern of a power of two."""
    if form.NUMBER == "mxfp4":
        if drop is not None:
            s = at_least_smallest(s * drop)
        return (s.to(tl.int32, bitcast=True) >> 23).to(tl.uint8)
    elif drop is not None:
        return tl.where(high != low, s * drop, 1.0)
    else:
        return s


@triton.jit
def store_codes(q, tile, results, form, sizes):
    """Writes codes q [ROWS, ...] of GROUPED places; of 4-bit floats two share a byte, the first in its low nibble."""
    if form.NUMBER == "mxfp4" or form.NUMBER == "nvfp4":
        low, high = tl.split(tl.reshape(q, (sizes.ROWS, sizes.GROUPED // 2, 2)))
        pair = tl.arange(0, sizes.GROUPED // 2)
        mask = tile.inside[:, None] & (pair < sizes.K // 2)[None, :]
        tl.store(results.codes + tile.start // 2 + pair[None, :], (low | high << 4).to(tl.uint8), mask=mask)
    else:
        q = tl.reshape(q, (sizes.ROWS, sizes.GROUPED))
        tl.store(results.codes + tile.start + tile.channel[None, :], q, mask=real_cells(tile))
