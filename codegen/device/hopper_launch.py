"""Host side of the kernel for compute capability 9.0: tensor descriptors, counters, launch."""

from typing import NamedTuple

import torch
import triton
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .counters import counters_of
from .gemm_heuristics import hopper_registers, token_boxes


class HopperTensors(NamedTuple):
    """Operands of `run`, of which there may be no scales of activations, zero points, bias and residual.

    tiles: of a grouped GEMM (`HopperGemm`).
    """

    x: torch.Tensor
    activation_scale: torch.Tensor | None
    weights: torch.Tensor
    weight_scale: torch.Tensor
    weight_zero: torch.Tensor | None
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    out: torch.Tensor
    tiles: torch.Tensor | None = None


def hopper_boxes(kind, options, out_bytes):
    """Of each descriptor: bytes of a row within which TMA swizzles, and the sizes of a box."""
    blocks, block_m = options["K_BLOCKS"], options["BLOCK_M"]
    floating, packed = kind.a_bits == 16, kind.w_bits < 8
    channels = 64 if packed else 128  # of a box of tokens: halves of a block are operands of their own
    boxes: dict[str, tuple[int, tuple[int, ...]]] = {}
    swizzle = channels * (2 if floating else 1)
    first, rest = token_boxes(block_m)
    boxes["x_desc"] = (swizzle, (128 // channels * blocks, first, channels))
    if rest:
        boxes["rest_desc"] = (swizzle, (128 // channels * blocks, rest, channels))
    if kind.w_bits < 4:  # planes, the higher one of two bits
        boxes["w_desc"] = (min(32 * blocks, 128), (64, 32 * blocks))
        if kind.w_bits == 3:
            boxes["low_desc"] = (min(16 * blocks, 128), (64, 16 * blocks))
    else:
        boxes["w_desc"] = (16 * kind.w_bits, (blocks, 64, 16 * kind.w_bits))
    if floating and kind.w_group:
        boxes["scale_desc"] = (0, (1, options["BLOCK_N"]))
    swizzle, width = (32 * out_bytes, 32) if kind.gated else (128, 64)
    return boxes | {"out_desc": (swizzle, (min(block_m, 128 // out_bytes), width))}


def descriptor(matrix, swizzle, box):
    """A matrix as TMA takes it; for a box of three sizes cut into columns as wide as the box."""
    (rows, columns), width, bits = matrix.shape, box[-1], 8 * matrix.element_size()
    if len(box) == 3:
        shape, strides = [columns // width, rows, width], [width, columns, 1]
    else:
        shape, strides = [rows, columns], [matrix.stride(0), 1]
    layout = gl.NVMMASharedLayout(swizzle, bits, rank=len(box))
    return TensorDescriptor(matrix, shape, strides, list(box), layout)


def with_rows_behind(x, height):
    """x [M, K] and rows behind it in memory, where there are some, as far as boxes of `height` rows reach.

    TMA takes longer for rows that it fills in. What they hold is multiplied, and goes nowhere.
    """
    rows, columns = x.shape
    there = (x.untyped_storage().nbytes() // x.element_size() - x.storage_offset()) // columns
    return x.as_strided((min(triton.cdiv(rows, height) * height, there), columns), (columns, 1))


def hopper_takes(out, K):
    """Whether the kernel for 9.0 runs here: K in whole blocks of 128, N in whole 16 bytes of every dtype."""
    fits = K % 128 == 0 and out.shape[1] % 8 == 0
    return fits and out.is_cuda and torch.cuda.get_device_capability(out.device)[0] == 9


def hopper_takes_experts(out, columns, K):
    """Whether a grouped GEMM runs there: an expert's channels of W in whole warpgroups' too."""
    return columns % 64 == 0 and hopper_takes(out, K)


def launch_hopper(kernel, kind, tensors, options):
    """Y by the kernel for 9.0, launched while the one before ends. kind: `HopperFormat`; tensors: `HopperTensors`."""
    x, weights, out = tensors.x, tensors.weights, tensors.out
    (M, K), N = x.shape, weights.shape[0]
    columns = N if tensors.tiles is None else out.shape[1] * (2 if kind.gated else 1)
    planes, low, group_scale, row_scale = weights, None, None, tensors.weight_scale
    if kind.w_bits < 4:
        planes, low = weights[:, : K // 4], weights[:, K // 4 :] if kind.w_bits == 3 else None
    if kind.a_bits == 16 and kind.w_group:
        group_scale, row_scale = tensors.weight_scale, None
    if kind.fp8:
        x, planes = x.view(torch.float8_e4m3fn), planes.view(torch.float8_e4m3fn)
    rows = with_rows_behind(x, options["BLOCK_M"])
    matrices = {
        "x_desc": rows,
        "rest_desc": rows,
        "w_desc": planes,
        "low_desc": low,
        "scale_desc": group_scale,
        "out_desc": out,
    }
    boxes = hopper_boxes(kind, options, out.element_size())
    block_n, block_m, split = options["BLOCK_N"], options["BLOCK_M"], options["SPLIT"]
    tiles = triton.cdiv(M, block_m) * triton.cdiv(columns, block_n)  # of a grouped GEMM: as many as there may be
    units = tiles * split
    multiprocessors = torch.cuda.get_device_properties(out.device).multi_processor_count
    sums = torch.float32 if kind.a_bits == 16 or kind.fp8 else torch.int32
    kernel[(min(units, multiprocessors * options["CTAS_PER_SM"]),)](
        *(descriptor(matrix, *boxes[name]) if name in boxes else None for name, matrix in matrices.items()),
        tensors.activation_scale,
        row_scale,
        tensors.weight_zero,
        tensors.bias,
        tensors.residual,
        torch.empty(tiles * block_n * block_m * split if split > 1 else 1, dtype=sums, device=out.device),
        counters_of(weights.device, weights.data_ptr(), tiles * block_n // 64 if split > 1 else 0),
        M,
        N,
        K,
        units,
        *(() if tensors.tiles is None else (tensors.tiles, columns)),
        launch_pdl=True,
        maxnreg=hopper_registers(options),
        enable_fp_fusion=kind.a_bits == 16 and kind.w_group > 0,
        **options,
    )
