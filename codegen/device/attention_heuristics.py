"""How attention of few queries is launched."""

import triton

MAX_SPLIT = 8  # programs for the keys of a head: the last of them merges that many partial sums alone
KEYS_AT_ONCE = 64  # keys and values of a loop step
ALL_KEYS = 256  # of a program, so that all loads are under way at once: 128 KB of shared memory
ALL_QUERIES = 32  # beside their sums
MANY_QUERIES = 64  # whose float32 sums take the registers of twice as many warps


def attention_shares(queries, heads, keys, multiprocessors):
    """Rows of queries, programs for the keys of a head, and the power of two that holds the keys of each.

    The tensor cores take 16 queries or more. Keys are split where heads leave multiprocessors idle: into no more
    programs than run at once, and no part without a step of its own.
    """
    split = max(1, min(MAX_SPLIT, multiprocessors // heads, triton.cdiv(keys, KEYS_AT_ONCE)))
    return max(16, triton.next_power_of_2(queries)), split, triton.next_power_of_2(triton.cdiv(keys, split))


def attention_tiles(queries, heads, keys, multiprocessors, capability):
    """Tiles and launch options for `heads` heads of all sequences: the speed, and the order of sums."""
    rows, split, block = attention_shares(queries, heads, keys, multiprocessors)
    programs = triton.cdiv(keys, block)
    together = capability // 10 == 10 and heads * programs <= multiprocessors
    if together and block == ALL_KEYS and rows <= ALL_QUERIES:
        return {"ROWS": rows, "BLOCK": block, "SPLIT": programs, "num_warps": 8, "num_stages": 1}
    warps = 4 if rows < MANY_QUERIES else 8
    return {"ROWS": rows, "BLOCK": KEYS_AT_ONCE, "SPLIT": split, "num_warps": warps, "num_stages": 3}


def hopper_attention_tiles(queries, heads, keys, width, multiprocessors):
    """Those of the kernel for 9.0; width: channels of a head."""
    rows, split, block = attention_shares(queries, heads, keys, multiprocessors)
    block = max(KEYS_AT_ONCE, block)
    if block <= ALL_KEYS and rows <= ALL_QUERIES:
        warps = 8 if block == ALL_KEYS and width == 128 else 4  # of 64 keys or channels, as many as both have
        return {"ROWS": rows, "BLOCK": block, "STAGES": 1, "SPLIT": triton.cdiv(keys, block), "num_warps": warps}
    stages = 4 if heads * split <= multiprocessors else 3  # of which two programs fit a multiprocessor
    return {"ROWS": rows, "BLOCK": KEYS_AT_ONCE, "STAGES": stages, "SPLIT": split, "num_warps": 4}
