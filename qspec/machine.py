"""The machine that computes: what bit-identical results depend on beside their inputs."""

from __future__ import annotations

import platform

import torch


def machine_kind(device: torch.device) -> str:
    """The GPU's name, or the CPU's architecture and vector instructions, which choose among torch's kernels."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def machine_facts(device: torch.device, threads: int | None = None) -> dict[str, str | int]:
    """Kind and, on a CPU, threads, which split float sums; set OMP_NUM_THREADS to have those of another machine.

    threads: those that compute, where it is not all that torch has now.
    """
    kind = machine_kind(device)
    return {"kind": kind} if device.type == "cuda" else {"kind": kind, "threads": threads or torch.get_num_threads()}
