"""What happens to the sums of a tile of Y^T [n, m] on their way to memory."""

import triton
import triton.language as tl

from .gates import multiply_gated


@triton.jit
def store_tile(y, out, tile):
    """Adds bias, rounds to the dtype of Y, gates or adds the residual, and stores. y: float32 [n, m]; out: `Output`."""
    if out.bias is not None:
        y = y + tl.load(out.bias + tile.n, mask=tile.n_inside, other=0.0)[:, None]
    dtype: tl.constexpr = out.data.dtype.element_ty
    if out.ACTIVATION != "none":
        BLOCK_N: tl.constexpr = y.shape[0]
        BLOCK_M: tl.constexpr = y.shape[1]
        y = y.to(dtype).reshape(BLOCK_N // 16, 2, 8, BLOCK_M)
        gate, up = y.permute(0, 2, 3, 1).split()
        y = multiply_gated(gate, up, out.ACTIVATION).reshape(BLOCK_N // 2, BLOCK_M)
        n = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        place = tile.m[None, :].to(tl.int64) * (tile.columns // 2) + n[:, None]
        tl.store(out.data + place, y, mask=(n < tile.columns // 2)[:, None] & tile.m_inside[None, :])
    else:
        place = tile.m[None, :].to(tl.int64) * tile.columns + tile.column[:, None]
        inside = tile.n_inside[:, None] & tile.m_inside[None, :]
        y = y.to(dtype)
        if out.residual is not None:
            r = tl.load(out.residual + place, mask=inside, other=0.0)
            y = (y.to(tl.float32) + r.to(tl.float32)).to(y.dtype)
        tl.store(out.data + place, y, mask=inside)
