"""How attention of few queries is launched."""

import torch
import triton

MAX_SPLIT = 8  # programs for the keys of a head: the last of them merges that many partial sums alone
KEYS_AT_ONCE = 64  # keys and values of a loop step
MANY_QUERIES = 64  # whose float32 sums take the registers of twice as many warps
# of each device: how many programs of a head have written their sums; 0 after each launch
ARRIVED: dict[torch.device, torch.Tensor] = {}


def attention_tiles(queries, heads, keys, multiprocessors):
    """Tiles and launch options for `heads` heads of all sequences: the speed, and the order of sums.

    The tensor cores take 16 queries or more. Keys are split where heads leave multiprocessors idle: into no more
    programs than run at once, and no part without a step of its own.
    """
    rows = max(16, triton.next_power_of_2(queries))
    split = max(1, min(MAX_SPLIT, multiprocessors // heads, triton.cdiv(keys, KEYS_AT_ONCE)))
    warps = 4 if rows < MANY_QUERIES else 8
    return {"ROWS": rows, "BLOCK": KEYS_AT_ONCE, "SPLIT": split, "num_warps": warps, "num_stages": 3}


def arrival_counters(device, heads):
    """int32 zeros for `heads` heads. Raises RuntimeError where a CUDA graph is captured before any were made."""
    if device not in ARRIVED or ARRIVED[device].numel() < heads:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("call once with these shapes before a CUDA graph is captured")
        ARRIVED[device] = torch.zeros(max(heads, 4096), dtype=torch.int32, device=device)
    return ARRIVED[device]
