"""silu(y) = y / (1 + 2^(-y log2 e)) for compute capability 9.0."""

import triton.language as tl

# As Triton's own division and power of two, without steps for tiny operands.
SILU_PTX = tl.constexpr(
    """{ .reg .f32 e; mul.f32 e, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 e, e;
        add.f32 e, e, 0f3F800000; rcp.approx.ftz.f32 e, e; mul.f32 $0, $1, e; }"""
)
