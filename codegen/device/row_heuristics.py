"""How activation quantization kernels are launched: this decides the speed, never the result."""

import torch
import triton

from .gemm_heuristics import MULTIPROCESSORS
from .hopper_rows_layouts import spans_of
from .launch import capability_of, multiprocessors_of

ONE_WAVE = 128  # rows; a GPU has about as many multiprocessors
LEAST_CHANNELS = 1024  # of a program of short rows
MANY_ROWS = 4096  # from which programs of short rows have four warps: a multiprocessor runs no more than 32 programs
PRODUCT_ROWS = 16  # of one product on the tensor cores
MOST_WARPS = 32  # of a program, by the hardware
RESIDENT_WARPS = 64  # of a multiprocessor


def row_tiles(columns, tokens, unit, held):
    """What a program holds of rows that are not rotated, and launch options.

    columns: K, read in units of `unit` channels in `held` places each.
    """
    length = triton.next_power_of_2(columns // unit) * held
    if tokens <= ONE_WAVE:
        # A program has a multiprocessor to itself, and its instructions come from far: 8 channels a thread.
        warps = min(MOST_WARPS, max(1, length // 256))
    elif length <= 8192:
        warps = max(1, length // 1024)  # 32 channels a thread, so that many rows are under way
    else:
        resident = RESIDENT_WARPS * MULTIPROCESSORS // tokens  # of each program, if all are to run at once
        warps = min(MOST_WARPS, max(length // 2048, triton.next_power_of_2(resident + 1) // 2))
    rows = max(1, LEAST_CHANNELS // length)
    if length <= LEAST_CHANNELS and tokens >= MANY_ROWS:
        rows, warps = 4 * rows, 4 * warps
    return {"ROWS": rows, "LENGTH": length, "ROTATED": length, "GROUPED": length, "num_warps": warps}


def rotated_row_tiles(columns, blocks, held, group=None, group_held=None):
    """What a program holds of rows that are rotated, and launch options.

    blocks: sizes of the first and the last rotation; held: places of a block of the last. group, group_held: channels
    that share a scale and places that they get, where rotated rows are put in another order for them.
    """
    first, last = blocks
    length = triton.next_power_of_2(columns)
    rotated = triton.next_power_of_2(columns // last) * held
    grouped = rotated if group is None else triton.next_power_of_2(columns // group) * group_held
    rows = max(1, PRODUCT_ROWS * first // length, PRODUCT_ROWS * held // rotated)
    # Warps that shared the last product's rows would be apart in a row of X: Triton 3.6 reduces it wrongly.
    warps = max(4, min(16, rows * rotated // max(1024, PRODUCT_ROWS * held)))
    # No more channels a thread than registers hold: with 128, float32 rows came out wrong (Triton 3.6, H200).
    warps = max(warps, min(8, rows * length // 512), min(16, rows * length // 2048))
    sizes = {"ROWS": rows, "LENGTH": length, "ROTATED": rotated, "GROUPED": grouped}
    return {**sizes, "num_warps": warps, "num_stages": 1}


def hopper_rows_fit(columns, block):
    """Whether the kernel for 9.0 holds a row: blocks of 128 channels, at most 256 of `block`, in shared memory.

    Triton 3.8 has no views of a part of shared memory, which it needs.
    """
    return not triton.__version__.startswith("3.8.") and columns % 128 == 0 and columns <= min(24576, 256 * block)


def hopper_takes_rows(x, block):
    """Whether that kernel runs here: bfloat16 rows that fit, on such a GPU."""
    return x.dtype == torch.bfloat16 and hopper_rows_fit(x.shape[1], block) and capability_of(x) // 10 == 9


def hopper_row_tiles(tokens, columns, blocks, fine, normed):
    """What a program of the kernel for 9.0 holds, and launch options.

    blocks: sizes of the rotations. fine: whether rows keep 22 bits between them. normed: whether rows are.

    PROGRAMS: on a multiprocessor. READ: pieces read ahead, NEXT: of the next row too.
    """
    read, last, few = columns // 128, columns // blocks[-1], tokens <= MULTIPROCESSORS
    permuted = len(blocks) == 2
    spans = spans_of(blocks[-1])
    # Two short rows fill a tile of 64 blocks, where there are rows for all multiprocessors.
    rows = 2 if not few and read <= 32 and not (permuted and len(spans) > 1) else 1
    slots = 32 if rows == 2 else 64 if read <= 64 else 128 if read <= 128 else 192
    options = {"ROWS": rows, "B": slots, "HEAD": min(rows * slots, 128), "TAIL": max(rows * slots - 128, 0)}
    if permuted:
        # Narrow spans have no layout for a tail of 64 rows.
        sizes = (64 // rows, 128, 192, 256) if spans[-1][1] >= 64 else (64, 128, 256)
        slots2 = next(size for size in sizes if size >= last)
        split = slots2 == 192
        options |= {"B2": slots2, "HEAD2": 128 if split else rows * slots2, "TAIL2": 64 if split else 0}
    else:
        options |= {"B2": slots, "HEAD2": options["HEAD"], "TAIL2": options["TAIL"]}
    if read <= 32:  # a row that has a multiprocessor to itself is bound by latency
        return {**options, "PROGRAMS": 2, "READ": 2, "NEXT": True, "num_warps": 16 if few else 8}
    if read <= 128 and (normed or (permuted and fine)):
        return {**options, "PROGRAMS": 1, "READ": 2, "NEXT": True, "num_warps": 8}  # shared memory, or registers
    if read <= 128 and not few:
        return {**options, "PROGRAMS": 2, "READ": 2, "NEXT": False, "num_warps": 8, "maxnreg": 128}
    return {**options, "PROGRAMS": 1, "READ": 2, "NEXT": False, "num_warps": 16}


def launch_hopper_rows(kernel, arguments, x, options):
    """As many programs as run at once walk the rows. arguments: of the kernel, up to the stride of x."""
    programs = options.pop("PROGRAMS") * multiprocessors_of(x)
    M, K = x.shape
    grid = (min(triton.cdiv(M, options["ROWS"]), programs),)
    kernel[grid](*arguments, M, x.stride(0), K=K, launch_pdl=True, enable_fp_fusion=False, **options)
