"""How rotary positions are launched."""

import triton

VALUES = 4096  # of a program: 32 of each of its four warps' threads, half of a head and its other half


def rotary_tiles(heads, width):
    """Tiles and launch options: all heads of a token in one program, up to what its registers hold."""
    return {"BLOCK": min(triton.next_power_of_2(heads), VALUES // width), "num_warps": 4}
