"""Triton's own launches under a driver without a GPU: kernels are compiled for an H100, loading and launching is noted.

Run by test_compiling.py in a process of its own; prints what was noted.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.runtime import driver

from qspec.kernels.compiling import compiled

noted: list[str] = []


class Utilities:
    def load_binary(self, name: str, *_: Any) -> tuple[int, ...]:
        noted.append(f"load {name}")
        return 1, 2, 32, 0, 1024

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}


class Launcher:
    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, *_: Any) -> None:
        noted.append("launch")


class NoGpu:
    utils = Utilities()
    launcher_cls = Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@triton.jit
def doubled(x, out, N, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    places = tl.arange(0, BLOCK)
    tl.store(out + places, tl.load(x + places) * 2 + N)


@gluon.jit
def added(x, out, N, BLOCK: gl.constexpr):  # type: ignore[no-untyped-def]
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    places = gl.arange(0, BLOCK, layout=layout)
    gl.store(out + places, gl.load(x + places) + N)


def main() -> None:
    driver.set_active(NoGpu())
    x = torch.zeros(128)

    def call() -> None:
        noted.append("call")
        doubled[(1,)](x, x, 3, BLOCK=16)
        doubled[(1,)](x, x, 3, BLOCK=32)
        added[(1,)](x, x, 3, BLOCK=128)

    compiled(call)
    loads = sorted(line for line in noted if line.startswith("load"))
    print([*loads, *(line for line in noted if not line.startswith("load"))])
    print(noted.index("launch") > max(index for index, line in enumerate(noted) if line.startswith("load")))
    noted.clear()
    compiled(call)
    print(noted)


if __name__ == "__main__":
    main()
