"""Counters that the programs of a launch share: which of them is the last to have written its part of a sum."""

import torch
import triton

# by device, whose they are, and length; never freed: a CUDA graph goes on counting where it was captured
COUNTERS: dict[tuple[torch.device, int, int], torch.Tensor] = {}


def counters_of(device, owner, count):
    """int32 zeros, `count` or more, that each launch leaves at 0: for launches of an owner, one after another.

    Raises RuntimeError where a CUDA graph is captured before there are any.
    """
    key = (device, owner, max(1024, triton.next_power_of_2(count)))
    if key not in COUNTERS:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("call once with these shapes before a CUDA graph is captured")
        COUNTERS[key] = torch.zeros(key[2], dtype=torch.int32, device=device)
    return COUNTERS[key]
