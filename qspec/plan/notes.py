"""What a plan's targets and regimes mean for its layers, said to people."""

from __future__ import annotations

from qspec.catalog import INTEGER
from qspec.language.spec import REGIMES
from qspec.plan.plan import Plan

BLOCK_SCALED = ("sm_100", "sm_120")  # targets whose tensor cores take 4-bit floats with their scales
RUN_ON = "sm_90"  # the target of the GPUs that every kernel was tested on


def notes(plan: Plan) -> tuple[str, ...]:
    """What the declared targets and regimes mean for these layers."""
    modules = [m for block, _ in plan.alike_blocks for m in block]
    labels = {m.scheme.label for m in modules if m.scheme}
    kernels = {(m.kernels.gemm.number, m.kernels.gemm.activation_bits) for m in modules if m.kernels}
    notes = []
    for target in plan.spec.emit.targets:
        if (INTEGER, 4) in kernels and target in ("sm_80", "sm_89"):
            notes.append(f"{target}: W4A4 runs as int8 arithmetic; Triton has no native int4 mma")
        elif (INTEGER, 4) in kernels:
            notes.append(f"{target} has no int4 tensor cores: W4A4 is 4-bit storage with int8 arithmetic")
        for number in sorted(number for number, bits in kernels if number != INTEGER and bits == 4):
            if target not in BLOCK_SCALED:
                notes.append(f"{target} has no 4-bit float tensor cores: {number} is multiplied as bfloat16")
        if ("fp8_e4m3", 8) in kernels and target == "sm_80":
            notes.append(f"{target} has no fp8 tensor cores: fp8_e4m3 is multiplied as float16")
        if target != RUN_ON:
            notes.append(f"{target}: kernels are compiled for it ahead of time; none was run on such a GPU yet")
    for regime in plan.spec.emit.regimes:
        low, high = REGIMES[regime]
        gain = "weight bytes decide" if regime == "block_decode" else "arithmetic decides"
        notes.append(f"{regime} carries {low}-{high} tokens a forward pass: {gain}")
        if regime == "full_sequence" and "W4A16" in labels:
            notes.append("W4A16 saves memory but no time at full_sequence")
    return tuple(notes)
