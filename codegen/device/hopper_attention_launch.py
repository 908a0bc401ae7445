"""Host side of attention of few queries for compute capability 9.0."""

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .attention_heuristics import hopper_attention_tiles
from .counters import counters_of
from .launch import capability_of, multiprocessors_of

ALIGNED = 16  # bytes: TMA takes addresses and strides that are whole numbers of them
SWIZZLE = 128  # bytes of a row within which it swizzles


def hopper_attends(*heads):
    """Whether the kernel for 9.0 runs on heads [batch, heads, tokens, width]: repeated ones have no stride."""
    strides = [stride * x.element_size() for x in heads for stride in x.stride()[:3]]
    aligned = all(part % ALIGNED == 0 for part in (*strides, *(x.data_ptr() for x in heads)))
    return aligned and min(strides) > 0 and capability_of(heads[0]) == 90


def attention_boxes(options, width):
    """Of each descriptor the sizes of a box."""
    tokens = {"q_desc": options["ROWS"], "k_desc": options["BLOCK"], "v_desc": options["BLOCK"]}
    return {name: [1, 1, count, width] for name, count in tokens.items()}


def launch_hopper_attention(kernel, q, k, v, mask, factor, out):
    """Fills out [batch, n, heads, width]. factor: of scores, for exponents of 2."""
    (B, H, n, width), (G, T) = q.shape, k.shape[1:3]
    options = hopper_attention_tiles(n, B * H, T, width, multiprocessors_of(q))
    cells = (B * H, options["SPLIT"], options["ROWS"])
    heads = zip((q, k, v), attention_boxes(options, width).values(), strict=True)
    kernel[(options["SPLIT"], B * H)](
        *(
            TensorDescriptor(x, list(x.shape), list(x.stride()), box, gl.NVMMASharedLayout(SWIZZLE, 16, rank=len(box)))
            for x, box in heads
        ),
        mask,
        out,
        torch.empty((*cells, width), dtype=torch.float32, device=q.device),
        torch.empty(cells, dtype=torch.float32, device=q.device),
        torch.empty(cells, dtype=torch.float32, device=q.device),
        counters_of(q.device, 0, B * H if options["SPLIT"] > 1 else 0),
        factor,
        n,
        T,
        HEADS=H,
        SHARED=H // G,
        launch_pdl=True,
        **options,
    )
