"""Host side of the portable kernels: grids, and GEMMs of cuBLAS."""

import torch
import triton


def grid_of(M, N, options):
    """One program for each tile."""
    return triton.cdiv(N, options["BLOCK_N"]), triton.cdiv(M, options["BLOCK_M"])


def pack_block(K, number="int"):
    """Channels whose codes are packed together: as many of 128, 64 and 32 as divide K; pairs of 4-bit floats."""
    if number != "int":
        return 2
    return 128 if K % 128 == 0 else 64 if K % 64 == 0 else 32


def capability_of(x):
    """Of the GPU where x is: 90 is 9.0; 0 under the interpreter."""
    major, minor = torch.cuda.get_device_capability(x.device) if x.is_cuda else (0, 0)
    return 10 * major + minor


def multiprocessors_of(x):
    """Of the GPU where x is; 8 under the interpreter."""
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 8


def dense_grid(N, K, step, span):
    """Programs of the kernel that writes weights down: of a step's channels, or of all K where there is none."""
    spans = K // step * triton.cdiv(step, span) if step else triton.cdiv(K, span)
    return spans, triton.cdiv(N, DENSE["BLOCK_N"])


DENSE = {"BLOCK_N": 32, "num_warps": 4}  # launch options of the kernel that writes weights down for cuBLAS
GATE = {"BLOCK": 2048, "num_warps": 4}  # of the one that gates what cuBLAS gave


def multiply_dense(x, dense, bias, y):
    """Y = X W^T + b by cuBLAS; b is rounded to the dtype of X."""
    if bias is None:
        torch.mm(x, dense.t(), out=y)
    else:
        torch.addmm(bias.to(x.dtype), x, dense.t(), out=y)


def multiply_fp8(activations, activation_scale, weights, weight_scale, bias, residual, out):
    """Y of e4m3 codes by cuBLAS; bias and residual are added to what it rounded."""
    torch._scaled_mm(
        activations.view(torch.float8_e4m3fn),
        weights.view(torch.float8_e4m3fn).t(),
        activation_scale.view(-1, 1),
        weight_scale,
        out_dtype=out.dtype,
        out=out,
    )
    if bias is not None:
        out += bias
    if residual is not None:
        out += residual
