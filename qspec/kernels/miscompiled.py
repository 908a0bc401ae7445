"""What Triton makes wrong machine code of: faults that were met on a GPU, as its intermediate code shows them.

Each function gives them in sentences.
"""

from __future__ import annotations

import re

LAYOUTS = re.compile(r"^(#\w+) = #ttg\.linear<\{.*\bwarp = \[((?:\[[\d, ]*\](?:, )?)*)\]", re.MULTILINE)
ALLOCATED = re.compile(r"ttg\.local_alloc : \(\) -> !ttg\.memdesc<(\d+)x512xf16")
REDUCED = re.compile(r"<\{axis = (\d+) : i32\}>.*?: \(tensor<[^>]*?, (#\w+)>", re.DOTALL)


def misreduced(ttgir: str) -> tuple[str, ...]:
    """Reductions that Triton 3.6 gets wrong.

    It numbers the warps that share a reduction as if they followed one another. In a layout that is a GEMM's,
    reshaped, they need not: `warp = [[0, 2048], [1, 0], [0, 64]]` has the warps of axis 1 on both sides of axis 0's.
    """
    warps = {name: re.findall(r"\[([\d, ]+)\]", bases) for name, bases in LAYOUTS.findall(ttgir)}
    problems = []
    for axis, layout in REDUCED.findall(ttgir):
        moves = [[int(step) for step in base.split(", ")] for base in warps.get(layout, ())]
        along = [bool(base[int(axis)]) for base in moves if any(base)]
        if "101" in re.sub(r"(\d)\1+", r"\1", "".join("01"[one] for one in along)):
            problems.append(f"reduces axis {axis} over warps that do not follow one another: {layout}")
    return tuple(problems)


def misplaced(ttgir: str, shared: int) -> tuple[str, ...]:
    """Shared memory of a second kernel of rows beyond its one allocation, where it takes its addresses to start."""
    sizes = [1024 * int(kilobytes) for kilobytes in ALLOCATED.findall(ttgir)]
    if sizes == [shared]:
        return ()
    return (f"{shared} bytes of shared memory, of which its own allocations are {sizes}",)


def unkept(ttgir: str) -> tuple[str, ...]:
    """Barriers in shared memory whose place Triton gives to something else behind the last wait for them.

    What lay there was overwritten on an H200 (docs/lab/2026-11-29-generating-text.md). A barrier that is invalidated is
    kept till then; where warps are specialized, all of them have what they share until their end.
    """
    made, kept = (ttgir.count(f"ttng.{name}_barrier ") for name in ("init", "inval"))
    if made == kept or "ttg.warp_specialize" in ttgir:
        return ()
    return (f"{made} barriers in shared memory, of which {kept} are invalidated",)
