"""Tile sizes and launch options of the GEMM kernels for compute capability 9.0."""

import triton


def hopper_tiles(kind, M, N, K):
    """Tile sizes and launch options of the kernel for 9.0; they decide the speed, never the result."""
    if kind.a_bits == 16:
        return hopper_tiles_weight_only(kind, M, N, K)
    wide, narrow = triton.cdiv(N, 128), triton.cdiv(N, 64)  # tiles of 128 and of 64 channels
    w_bits = kind.w_bits
    if w_bits == 4 and M <= 64 and triton.cdiv(N, 192) > 100:
        block_m, blocks, stages = (16, 4, 3) if M <= 16 else (32, 2, 6) if M <= 32 else (64, 2, 5)
        choice = {"BLOCK_N": 192, "BLOCK_M": block_m, "PB": blocks, "STAGES": stages, "SPLIT": 1}
    elif w_bits == 4 and M <= 64 and 44 < narrow <= 132 and K <= 6144:
        block_m, blocks, stages = (16, 4, 8) if M <= 16 else (32, 2, 12) if M <= 32 else (64, 2, 8)
        choice = {"BLOCK_N": 64, "BLOCK_M": block_m, "PB": blocks, "STAGES": stages, "SPLIT": 1, "TEAMS": 2}
    elif w_bits == 4 and M <= 32:
        block_m, stages = (16, 5) if M <= 16 else (32, 4)
        choice = {"BLOCK_N": 128, "BLOCK_M": block_m, "PB": 4, "STAGES": stages, "SPLIT": 128 // wide}
    elif w_bits == 4 and M <= 64 and wide > 66:
        choice = {"BLOCK_N": 128, "BLOCK_M": 64, "PB": 2, "STAGES": 5, "SPLIT": 1}
    elif w_bits == 4 and M <= 64:
        choice = {"BLOCK_N": 64, "BLOCK_M": 64, "PB": 2, "STAGES": 8, "SPLIT": 64 // wide}
    elif M <= 32:
        block_m = 16 if M <= 16 else 32
        choice = {"BLOCK_N": 128, "BLOCK_M": block_m, "PB": 2, "STAGES": 5, "SPLIT": 128 // wide}
    elif M <= 64:
        choice = {"BLOCK_N": 128, "BLOCK_M": 64, "PB": 1, "STAGES": 8, "SPLIT": 128 // wide}
    elif M <= 256 and triton.cdiv(N, 192) * triton.cdiv(M, 128) > 100:
        choice = {"BLOCK_N": 192, "BLOCK_M": 128, "PB": 1, "STAGES": 7 if w_bits == 4 else 5, "SPLIT": 1}
    elif M <= 256 and 66 < narrow * triton.cdiv(M, 128) <= 132 and K <= 6144:
        choice = {"BLOCK_N": 64, "BLOCK_M": 128, "PB": 1, "STAGES": 8 if w_bits == 4 else 6, "SPLIT": 1, "TEAMS": 2}
    elif M <= 256:
        tiles = wide * triton.cdiv(M, 128)
        choice = {"BLOCK_N": 128, "BLOCK_M": 128, "PB": 1, "STAGES": 6, "SPLIT": 132 // tiles}
    else:
        choice = {"BLOCK_N": 128, "BLOCK_M": 256, "PB": 1, "STAGES": 4, "SPLIT": 1}
    if M <= 8:
        choice["BLOCK_M"] = 8
    # SPLIT: from the programs that fit, no more than there are stages
    split = min(choice["SPLIT"], 8, triton.cdiv(K, 128 * choice["PB"]))
    return {"SHARE": 1, "TEAMS": 1, **choice, "SPLIT": max(1, split)}


def hopper_tiles_weight_only(kind, M, N, K):
    """Tile sizes and launch options of the kernel for 9.0; they decide the speed, and the order of sums."""
    few = triton.cdiv(N, 64)  # tiles of 64 channels
    cut = kind.w_bits < 4
    if M <= (32 if cut else 64):
        share = 3 if few > 264 else 2
        if cut:
            block_m, blocks, stages = (16, 4, 6) if M <= 16 else (32, 2, 9)
        else:
            block_m, blocks, stages = (16, 2, 12) if M <= 16 else (32, 2, 8) if M <= 32 else (64, 1, 9)
        sizes = {"BLOCK_N": 64, "BLOCK_M": block_m, "PB": blocks, "STAGES": stages // share}
        choice = {**sizes, "SPLIT": 132 * share // few, "SHARE": share}
    elif cut and M <= 64:
        sizes = {"BLOCK_N": 64, "BLOCK_M": 64, "PB": 2, "STAGES": 4}
        choice = {**sizes, "SPLIT": 132 // few, "SHARE": 1, "TEAMS": 2}
    elif M <= 256 and few * triton.cdiv(M, 128) <= 400:
        stages, teams = (3, 1) if cut else (4, 2)
        sizes = {"BLOCK_N": 64, "BLOCK_M": 128, "PB": 2 if cut else 1, "STAGES": stages, "TEAMS": teams}
        choice = {**sizes, "SPLIT": 1, "SHARE": 1}
    else:
        blocks, stages = (2, 2) if cut else (1, 4)
        choice = {"BLOCK_N": 128, "BLOCK_M": 128, "PB": blocks, "STAGES": stages, "SPLIT": 1, "SHARE": 1}
    if M <= 8:
        choice["BLOCK_M"] = 8
    # SPLIT: from the programs that fit, no more than there are stages
    split = min(choice["SPLIT"], 8, triton.cdiv(K, 128 * choice["PB"]))
    return {"TEAMS": 1, **choice, "SPLIT": max(1, split)}
