"""Compiles a generated kernel for a GPU that is not here, and reads what the assembler made of it.

Triton brings its own ptxas and cuobjdump, so PTX and machine code need neither a GPU nor a CUDA toolkit.
What a kernel must show: the tensor-core instruction of its target, hardly any stack (spilled registers), and
shared memory within the target's limit.
"""

from __future__ import annotations

import atexit
import inspect
import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType
from typing import Any

from qspec.catalog import (
    FEW,
    INTEGER,
    MOST_DECIDED,
    PACK_BLOCKS,
    ActivationKernel,
    AttentionKernel,
    CommitKernel,
    ExpertsKernel,
    GemmKernel,
    LikeliestKernel,
    RotaryKernel,
)
from qspec.errors import MachineError, UsageError
from qspec.formats import zero_bits
from qspec.kernels.gemm_sizes import MOST_ROWS, row_tile
from qspec.kernels.generate import Kernel, library
from qspec.kernels.miscompiled import misplaced, misreduced, unkept


@dataclass(frozen=True)
class Target:
    """One compute capability.

    shared: bytes of shared memory that a block may take. floats, integers: matrix instructions that do for
    16-bit and for int8 operands; blocks: for 4-bit floats with their scales, `floats` where there is none.
    """

    capability: int
    shared: int
    floats: tuple[str, ...]
    integers: tuple[str, ...]
    blocks: tuple[str, ...] = ()


WARP, WARPGROUP, TENSOR_MEMORY = "mma.sync", "wgmma.mma_async", "tcgen05.mma"
TENSOR_BLOCKS = "tcgen05.mma.cta_group::1.kind::mxf4"
WARP_BLOCKS = "mma.sync.aligned.m16n8k64.row.col.kind::mxf4"
TARGETS = {
    "sm_80": Target(80, 163 * 1024, (WARP,), (WARP,)),
    "sm_89": Target(89, 99 * 1024, (WARP,), (WARP,)),
    "sm_90": Target(90, 227 * 1024, (WARPGROUP,), (WARPGROUP,)),
    # int8: WARP up to Triton 3.6
    "sm_100": Target(100, 227 * 1024, (TENSOR_MEMORY,), (TENSOR_MEMORY, WARP), (TENSOR_BLOCKS,)),
    "sm_120": Target(120, 99 * 1024, (WARP,), (WARP,), (WARP_BLOCKS,)),
}
MATRIX_INSTRUCTION = re.compile(r"\b(?:wgmma\.mma_async|tcgen05\.mma|mma\.sync)[\w.:]*")
COLUMNS = 4096  # LLaDA-8B's width
HOPPER = 90  # the compute capability for which some kernels have a second form; from it on launches may overlap
MAX_STACK = 64  # bytes a thread: ptxas may spill a few registers to fit one more block on a multiprocessor
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")

TYPES = {  # of the parameters whose type does not depend on the kernel
    "M": "i32",
    "N": "i32",
    "activation_unit": "*fp32",
    "activation_zero": "*i8",
    "bias": "*fp32",
    "columns": "i32",
    "dense": "*bf16",
    "out": "*bf16",
    "eps": "fp32",
    "gain": "*fp32",
    "permutation": "*i16",
    "residual": "*bf16",
    "rotation0": "*fp16",
    "rotation1": "*fp16",
    "stride": "i32",
    "tiles": "*i32",
    "unit": "*fp32",
    "up": "*bf16",
    "weight_unit": "*fp32",
    "x": "*bf16",
    "zero": "*i8",
}


ATTENTION_TYPES = {  # of the parameters of an attention kernel; the others are sizes and strides
    **dict.fromkeys(("q", "k", "v", "out"), "*bf16"),
    **dict.fromkeys(("sums", "denominators", "maxima"), "*fp32"),
    "mask": "*u8",
    "arrived": "*i32",
    "factor": "fp32",
}
ROTARY_TYPES = {  # of the parameters of a rotary kernel; the others are strides
    **dict.fromkeys(("q", "k", "v", "queries", "keys", "values"), "*bf16"),
    **dict.fromkeys(("cos", "sin"), "*fp32"),
    "places": "*i64",
}
EXPERTS_TYPES = {  # of the kernels around grouped GEMMs; the others are int32 or sizes
    **dict.fromkeys(("rank", "counts", "place", "tiles", "live", "values", "sorted_values"), "*i32"),
    **dict.fromkeys(("scale", "sorted_scale", "weights"), "*fp32"),
    **dict.fromkeys(("zero", "sorted_zero"), "*i8"),
    **dict.fromkeys(("y", "out"), "*bf16"),
    "chosen": "*i64",
}
EXPERTS, CHOSEN = 256, 8  # of a mixture whose rows such kernels sort
LIKELIEST_TYPES = {  # of the parameters of a kernel that chooses tokens
    **dict.fromkeys(("maxima", "sums", "extras", "confidence"), "*fp32"),
    **dict.fromkeys(("places", "arrived"), "*i32"),
    **dict.fromkeys(("absent", "finite"), "*u8"),
    "logits": "*bf16",
    "tokens": "*i64",
    "row_stride": "i32",
}
COMMIT_TYPES = {  # of the parameters of the kernel that commits tokens; the others are int32
    **dict.fromkeys(("ids", "places", "tokens", "count"), "*i64"),
    **dict.fromkeys(("chosen", "left"), "*u8"),
    **dict.fromkeys(("limit", "slack"), "fp32"),
    "confidence": "*fp32",
}
# M and the units that follow from it, sizes, floats: compiled once for every number
UNALIGNED = ("M", "units", "eps", "n", "T", "factor", "size", "mask_token", "limit", "slack")
VOCABULARY = 126464  # LLaDA's
ATTENTION_HEADS, MULTIPROCESSORS = 32, 132  # what an attention kernel's tiles follow from, besides queries and keys


@dataclass(frozen=True)
class AheadReport:
    """What one kernel became on one target.

    instructions: its matrix instructions. registers and stack bytes are a thread's, shared bytes a block's.
    problems: what is wrong, in sentences; empty if nothing is.
    """

    kernel: str
    target: str
    instructions: tuple[str, ...]
    registers: int
    stack: int
    shared: int
    problems: tuple[str, ...]


def compile_ahead(
    kernel: Kernel, target: str, tokens: int = 1024, columns: int | None = None, residual: bool = False
) -> AheadReport:
    """Compiles the kernel as it is launched for X [tokens, columns] in bfloat16, N 4096.

    columns: K; by default the smallest from 4096 that the kernel takes. Attention has 32 heads, `columns` keys, and as
    many queries as it takes. residual: whether a GEMM adds one.

    Raises UsageError for an unknown target, MachineError without Triton or its tools.
    """
    if target not in TARGETS:
        raise UsageError(f"unknown target {target!r}", hint=f"one of {', '.join(TARGETS)}")
    module = library(None).module(kernel)
    columns = columns or _columns(kernel)
    compiled = _compile(module, kernel, TARGETS[target], tokens, columns, residual)
    registers, stack = _resources(compiled.asm["cubin"])
    found = tuple(sorted(set(MATRIX_INSTRUCTION.findall(compiled.asm["ptx"]))))
    shared = int(compiled.metadata.shared)
    problems = _problems(kernel, TARGETS[target], found, stack, shared)
    problems += misreduced(compiled.asm["ttgir"]) + unkept(compiled.asm["ttgir"])
    for other in _compile_others(module, kernel, TARGETS[target], tokens, columns):
        problems += _excesses(TARGETS[target], _resources(other.asm["cubin"])[1], int(other.metadata.shared))
    if isinstance(kernel, ActivationKernel) and _second(module, kernel, TARGETS[target], columns):
        problems += misplaced(compiled.asm["ttgir"], shared)
    return AheadReport(kernel.name, target, found, registers, stack, shared, problems)


def compile_all(jobs: Sequence[tuple[Kernel, str]]) -> Iterator[AheadReport]:
    """`compile_ahead` of kernels for targets, in their order. Raises MachineError where a process was killed."""
    if not jobs:
        return
    with compilers(min(len(jobs), os.cpu_count() or 1)) as pool:
        try:
            yield from pool.map(compile_ahead, *zip(*jobs, strict=True))
        except BrokenProcessPool:
            raise MachineError("a process that compiled a kernel was killed", hint="free memory") from None


def compilers(count: int) -> ProcessPoolExecutor:
    """Processes that may compile kernels and end without a word.

    Triton's bindings hold types of their own until the interpreter is gone, and say so in thirty lines as a process
    ends that has compiled a Gluon kernel; what these processes give has reached us by then.
    """
    return ProcessPoolExecutor(count, get_context("spawn"), _begin)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process hears it, and ends the others
    atexit.register(os._exit, 0)


def _problems(kernel: Kernel, target: Target, found: tuple[str, ...], stack: int, shared: int) -> tuple[str, ...]:
    problems = []
    wanted = _instructions(kernel, target)
    if wanted and not any(name.startswith(wanted) for name in found):
        problems.append(f"no {' or '.join(wanted)} among its instructions")
    return (*problems, *_excesses(target, stack, shared))


def _excesses(target: Target, stack: int, shared: int) -> tuple[str, ...]:
    problems = []
    if stack > MAX_STACK:
        problems.append(f"{stack} bytes of stack: registers are spilled")
    if shared > target.shared:
        problems.append(f"{shared} bytes of shared memory, {target.shared} are allowed")
    return tuple(problems)


def _instructions(kernel: Kernel, target: Target) -> tuple[str, ...]:
    """The matrix instructions of which a kernel must have one; none where it multiplies nothing."""
    if isinstance(kernel, GemmKernel):
        if kernel.number == INTEGER and kernel.activation_bits != 16:
            return target.integers
        return (kernel.pairs and kernel.activation_bits != 16 and target.blocks) or target.floats
    if isinstance(kernel, AttentionKernel):
        return (*target.floats, WARP)
    if isinstance(kernel, RotaryKernel | ExpertsKernel | LikeliestKernel | CommitKernel):
        return ()
    return (*target.floats, WARP) if kernel.rotations else ()  # a row of 4096 has too few blocks for more


def _columns(kernel: Kernel) -> int:
    """The smallest K from 4096 that the kernel's groups and blocks divide."""
    if isinstance(kernel, ActivationKernel):
        sizes: tuple[int | None, ...] = (*kernel.rotations, kernel.group)
    elif isinstance(kernel, GemmKernel):
        sizes = (kernel.weight_group, kernel.activation_group)
    else:
        sizes = ()
    unit = math.lcm(PACK_BLOCKS[0], *(size for size in sizes if size))
    return -(-COLUMNS // unit) * unit


def _compile(
    module: ModuleType, kernel: Kernel, target: Target, tokens: int, columns: int, residual: bool = False
) -> Any:
    import triton

    second = _second(module, kernel, target, columns)
    function = getattr(module, f"{kernel.name}_hopper" if second else kernel.name)
    if not isinstance(function, triton.runtime.JITFunction):
        raise MachineError("kernels are interpreted here, not compiled", hint="unset TRITON_INTERPRET")
    types = dict(TYPES)
    if second and isinstance(kernel, GemmKernel):
        options = _second_tiles(module, kernel, tokens, columns)
        types |= _second_types(module, kernel, options)
        fixed = {**options, **_second_absent(kernel, types)}
        options["maxnreg"] = module.hopper_registers(options)
    elif second and isinstance(kernel, AttentionKernel):
        sizes = (min(tokens, FEW), ATTENTION_HEADS, columns, kernel.width, MULTIPROCESSORS)
        options = dict(module.hopper_attention_tiles(*sizes))
        boxes = module.attention_boxes(options, kernel.width)
        types |= {name: _descriptor_type(("bf16", 16), module.SWIZZLE, box) for name, box in boxes.items()}
        fixed = {"HEADS": ATTENTION_HEADS, "SHARED": 1, **options}
    elif second:
        options = module.hopper_tiles(tokens, columns)
        del options["PROGRAMS"]
        fixed = {"K": columns, **options}
    else:
        options = _tiles(module, kernel, target, tokens, columns)
        pack = kernel.pack_block(columns) if isinstance(kernel, GemmKernel) else PACK_BLOCKS[0]
        fixed = {"K": columns, "PACK": pack, "PDL": target.capability >= HOPPER}
        fixed |= {"HEADS": ATTENTION_HEADS, "GROUPS": ATTENTION_HEADS, "SHARED": 1, "WIDTH": columns}
        fixed |= {"EXPERTS": EXPERTS, "HELD_EXPERTS": EXPERTS, "CHOSEN": CHOSEN, "HELD_CHOSEN": CHOSEN}
        fixed |= {"VOCAB": VOCABULARY, "BLOCK_M": MOST_ROWS, **options}
    fixed |= _absent(kernel, residual)
    return _assemble(function, kernel, target, types, fixed, options)


def _second_tiles(module: ModuleType, kernel: GemmKernel, tokens: int, columns: int) -> dict[str, Any]:
    """Tiles of a GEMM's second kernel."""
    if kernel.experts:
        return dict(module.hopper_expert_tiles(module.FORMAT, row_tile(tokens, kernel), COLUMNS, columns))
    return dict(module.hopper_tiles(module.FORMAT, tokens, COLUMNS, columns))


def _tiles(module: ModuleType, kernel: Kernel, target: Target, tokens: int, columns: int) -> dict[str, Any]:
    """Tiles and launch options of the first kernel of a file."""
    if isinstance(kernel, AttentionKernel):
        sizes = (min(tokens, FEW), ATTENTION_HEADS, columns, MULTIPROCESSORS)
        tiles = module.attention_tiles(*sizes, target.capability)
    elif isinstance(kernel, RotaryKernel):
        tiles = module.rotary_tiles(ATTENTION_HEADS, kernel.width)
    elif isinstance(kernel, ExpertsKernel):
        tiles = module.tiles()
    elif isinstance(kernel, LikeliestKernel):
        tiles = module.likeliest_tiles()
    elif isinstance(kernel, CommitKernel):
        tiles = module.commit_tiles(min(tokens, MOST_DECIDED))
    else:
        choose = getattr(module, "tiles" if isinstance(kernel, ActivationKernel) else _gemm_tiles(kernel))
        known = {"tokens": tokens, "columns": columns, "capability": target.capability}
        if isinstance(kernel, GemmKernel):
            known["rows"] = row_tile(tokens, kernel)
        tiles = choose(**{name: known[name] for name in inspect.signature(choose).parameters})
        if isinstance(kernel, GemmKernel) and kernel.experts and kernel.number != INTEGER:
            tiles["NATIVE"] = target.capability >= 89
    return dict(tiles)


def _gemm_tiles(kernel: GemmKernel) -> str:
    if kernel.experts:
        return "expert_tiles"
    if kernel.number == INTEGER or kernel.activation_bits == 16:
        return "portable_tiles"
    return "fp4_tiles" if kernel.pairs else "fp8_tiles"


def _second(module: ModuleType, kernel: Kernel, target: Target, columns: int) -> bool:
    """Whether the file's second kernel is launched for K `columns`: rows that it cannot hold take the first one."""
    if target.capability != HOPPER or not isinstance(kernel, GemmKernel | ActivationKernel | AttentionKernel):
        return False
    if isinstance(kernel, AttentionKernel):
        return True
    return kernel.hopper and (isinstance(kernel, GemmKernel) or bool(module.hopper_fits(columns)))


def _absent(kernel: Kernel, residual: bool) -> dict[str, None]:
    """Parameters that get None: operands that the kernel's format does not have."""
    if not isinstance(kernel, GemmKernel):
        return {"live": None} if isinstance(kernel, ActivationKernel) else {}
    there = {
        "residual": residual,
        "activation_zero": not kernel.activation_symmetric,
        "weight_zero": not kernel.weight_symmetric,
        "activation_unit": bool(kernel.format.unit_bits),
        "weight_unit": bool(kernel.format.unit_bits),
        "activation_scale": kernel.activation_bits != 16,
    }
    return {name: None for name, present in there.items() if not present}


def _second_absent(kernel: GemmKernel, types: dict[str, str]) -> dict[str, None]:
    """Parameters of the second kernel that get None, beside those of the first; types: with those of its boxes."""
    absent = [name for name in ("rest_desc", "low_desc", "scale_desc") if name not in types]
    if kernel.activation_bits == 16:
        absent += ["weight_scale"] * (kernel.weight_group is not None)
    return dict.fromkeys(absent)


def _compile_others(module: ModuleType, kernel: Kernel, target: Target, tokens: int, columns: int) -> Iterator[Any]:
    """What a file launches beside its kernel."""
    if isinstance(kernel, GemmKernel) and kernel.dense:
        yield _compile_dense(module, kernel, target, columns)
    if kernel == ExpertsKernel("sort"):
        options = module.rank_tiles(tokens * CHOSEN)
        fixed = {"PDL": target.capability >= HOPPER, **options}
        yield _assemble(getattr(module, f"{kernel.name}_rank"), kernel, target, TYPES, fixed, options)


def _compile_dense(module: ModuleType, kernel: GemmKernel, target: Target, columns: int) -> Any:
    """The kernel that writes weights down for cuBLAS, in bfloat16."""
    fixed = {"K": columns, "PACK": kernel.pack_block(columns), **module.DENSE, **_absent(kernel, False)}
    types = TYPES | ({"weights": "*i16"} if kernel.weight_bits == 4 and kernel.interleaved else {})
    return _assemble(getattr(module, f"{kernel.name}_dense"), kernel, target, types, fixed, dict(module.DENSE))


def _assemble(
    function: Any, kernel: Kernel, target: Target, types: dict[str, str], fixed: dict[str, Any], options: dict[str, Any]
) -> Any:
    """fixed: constants, by parameter. options: of the compiler; those that are parameters too are left out."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

    signature, constants, attributes = {}, {}, {}
    for index, name in enumerate(function.arg_names):
        if name in fixed:
            signature[name] = "constexpr"
            constants[(index,)] = fixed[name]
            if name != "num_warps":
                options.pop(name, None)
        else:
            signature[name] = _type(kernel, name, types)
            if name not in UNALIGNED and not name.endswith("_desc"):
                attributes[(index,)] = [["tt.divisibility", 16]]
    floating = isinstance(kernel, GemmKernel) and kernel.activation_bits == 16 and kernel.weight_group is not None
    options["enable_fp_fusion"] = floating
    kind = GluonASTSource if isinstance(function, GluonJITFunction) else ASTSource
    source = kind(function, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", target.capability, 32), options=options)


def _second_types(module: ModuleType, kernel: GemmKernel, options: dict[str, Any]) -> dict[str, str]:
    """The parameters of a file's second kernel that the first does not have."""
    floating = kernel.activation_bits == 16
    byte = "i8" if kernel.number == INTEGER else "fp8e4nv"
    values = {
        "x_desc": ("bf16", 16) if floating else (byte, 8),
        "rest_desc": (byte, 8),
        "w_desc": ("u8" if kernel.weight_bits < 8 else byte, 8),
        "low_desc": ("u8", 8),
        "scale_desc": ("fp16", 16),
        "out_desc": ("bf16", 16),
    }
    floats = floating or kernel.number != INTEGER
    types = {"partials": "*fp32" if floats else "*i32", "counters": "*i32", "K": "i32", "units": "i32"}
    for name, (swizzle, box) in module.hopper_boxes(module.FORMAT, options, 2).items():
        types[name] = _descriptor_type(values[name], swizzle, box)
    return types


def _descriptor_type(values: tuple[str, int], swizzle: int, box: Sequence[int]) -> str:
    """Of values, their name and bits, in boxes that TMA swizzles within so many bytes of a row."""
    from triton.experimental.gluon.language import NVMMASharedLayout

    value, bits = values
    layout = NVMMASharedLayout(swizzle, bits, rank=len(box))
    return f"tensordesc<{value}[{', '.join(map(str, box))}],{layout!r}>"


def _type(kernel: Kernel, name: str, types: dict[str, str]) -> str:
    if isinstance(kernel, AttentionKernel):
        return types[name] if name.endswith("_desc") else ATTENTION_TYPES.get(name, "i32")
    if isinstance(kernel, RotaryKernel):
        return ROTARY_TYPES.get(name, "i32")
    if isinstance(kernel, ExpertsKernel):
        return EXPERTS_TYPES.get(name, "i32")
    if isinstance(kernel, LikeliestKernel):
        return LIKELIEST_TYPES[name]
    if isinstance(kernel, CommitKernel):
        return COMMIT_TYPES.get(name, "i32")
    if name in types:
        return types[name]
    if name == "activations" and isinstance(kernel, GemmKernel) and kernel.activation_bits == 16:
        return "*bf16"
    if name in ("codes", "activations"):
        return "*u8" if kernel.pairs else "*i8"
    if isinstance(kernel, ActivationKernel) or name == "activation_scale":
        return "*u8" if kernel.pairs else "*fp32"
    if name == "weight_scale":
        return "*u8" if kernel.pairs else "*fp16" if kernel.weight_group else "*fp32"
    packed = kernel.weight_bits < 8 if name == "weights" else zero_bits(kernel.weight_bits) < 8
    return "*u8" if packed else "*i8"


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes of a thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [_cuobjdump(), "--dump-resource-usage", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    match = RESOURCES.search(done.stdout)
    if match is None:
        raise MachineError("cuobjdump does not say what the kernel takes", where=done.stderr.strip()[:200])
    return int(match[1]), int(match[2])


def _cuobjdump() -> str:
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = str(bundled) if bundled.is_file() else shutil.which("cuobjdump")
    if found is None:
        raise MachineError("cuobjdump is missing", hint="Triton's wheel and the CUDA toolkit bring it")
    return found
