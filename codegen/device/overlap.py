"""Programmatic dependent launch (PDL): a kernel is launched before the one ahead of it in its stream has ended."""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from .launch import capability_of


def overlaps(x):
    """Whether kernels on the device of x are launched so: from compute capability 9.0 on."""
    return capability_of(x) >= 90


@triton.jit
def overlap_launches(PDL: tl.constexpr):
    """Lets the next kernel be launched, and waits until what the one ahead has written can be read."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
