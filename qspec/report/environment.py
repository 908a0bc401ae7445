"""What computed the numbers: versions, processor, GPU, peak memory."""

from __future__ import annotations

import os
import platform
import resource
import sys

import torch

from qspec.lock import package_versions


def environment() -> dict[str, str]:
    """Names and values for people; nothing that identifies the machine or its user."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found |= package_versions()
    found["cpu"] = f"{os.cpu_count()} cores, {torch.get_num_threads()} used"
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return found


def memory() -> dict[str, int]:
    """Peak resident memory of this process and, with a GPU, the peak that torch allocated there; bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"peak resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        found["peak on the GPU"] = torch.cuda.max_memory_allocated()
    return found
