"""What computed the numbers: versions, processor, GPU, peak memory."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from qspec.lock import package_versions


def environment() -> dict[str, str]:
    """Names and values for people; nothing that identifies the machine or its user."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found |= package_versions()
    found["cpu"] = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} used"
    if commit := _commit():
        found["qspec commit"] = commit
    found["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return found


def now() -> str:
    """The date and time, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """Of a checkout that qspec runs from, with "changed" where its files are; "" where it is installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        run = partial(subprocess.run, cwd=root, capture_output=True, text=True, check=True, timeout=10)
        commit = run(["git", "rev-parse", "--short=12", "HEAD"]).stdout.strip()
        changed = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}, changed" if changed else str(commit)


def memory() -> dict[str, int]:
    """Peak resident memory of this process and, with a GPU, the peak that torch allocated there; bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"peak resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        found["peak on the GPU"] = torch.cuda.max_memory_allocated()
    return found
