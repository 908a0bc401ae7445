"""How activation quantization kernels are launched: this decides the speed, never the result."""

import triton

ONE_WAVE = 128  # rows; a GPU has about as many multiprocessors
LEAST_CHANNELS = 1024  # of a program of short rows
PRODUCT_ROWS = 16  # of one product on the tensor cores
MOST_WARPS = 32  # of a program, by the hardware


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
        warps = min(MOST_WARPS, length // 2048)
    rows = max(1, LEAST_CHANNELS // length)
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
