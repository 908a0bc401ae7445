"""What the gate of an MLP passes through before it multiplies up: silu, or gelu in its form with tanh.

silu(y) = y / (1 + exp(-y))
gelu(y) = y (1 + tanh u) / 2 = y / (1 + exp(-2 u)),    u = sqrt(2 / pi) (y + 0.044715 y^3)    (arXiv 1606.08415)
"""

import triton
import triton.language as tl

# As Triton's own division and power of two, without steps for tiny operands.
SILU_PTX = tl.constexpr(
    """{ .reg .f32 e; mul.f32 e, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 e, e;
        add.f32 e, e, 0f3F800000; rcp.approx.ftz.f32 e, e; mul.f32 $0, $1, e; }"""
)
GELU_TANH_PTX = tl.constexpr(
    """{ .reg .f32 e; mul.f32 e, $1, $1; fma.rn.f32 e, e, 0fBDD2D3E8, 0fC0135761; mul.f32 e, $1, e;
        ex2.approx.ftz.f32 e, e; add.f32 e, e, 0f3F800000; rcp.approx.ftz.f32 e, e; mul.f32 $0, $1, e; }"""
)


@triton.jit
def activate(y, ACTIVATION: tl.constexpr):
    """silu(y), or gelu(y) where ACTIVATION is "gelu_tanh"; y: float32."""
    if ACTIVATION == "silu":
        exponent = y * -1.4426950408889634  # -log2 e
    else:
        exponent = y * tl.fma(y * y, -0.1029432395800235, -2.302208198144325)  # -2 u log2 e
    return y / (1.0 + tl.exp2(exponent))


@triton.jit
def multiply_gated(gate, up, ACTIVATION: tl.constexpr):
    """f(gate) up of rounded gate and up, f(gate) rounded to their dtype before the product."""
    y = activate(gate.to(tl.float32), ACTIVATION).to(gate.dtype)
    return (y.to(tl.float32) * up.to(tl.float32)).to(gate.dtype)
