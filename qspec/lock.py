"""The lock: exactly which checkpoint, tokenizer, calibration tokens, packages and kind of machine made an artifact."""

from __future__ import annotations

import hashlib
import json
import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from qspec.errors import InputError
from qspec.files import read_input, sha256, write_whole
from qspec.models.tokenizer import tokenizer_files
from qspec.version import __version__

FORMAT = 1
PACKAGES = ("torch", "triton", "transformers", "safetensors", "numpy")


@dataclass(frozen=True)
class Lock:
    """content: plain JSON values, compared key by key."""

    content: dict[str, Any]

    @classmethod
    def of(
        cls,
        *,
        model: str,
        revision: str,
        files: dict[str, str],
        recipe: str,
        calibration: str,
        seed: int,
        device: torch.device,
    ) -> Lock:
        """The lock of this machine and these inputs. files: name -> sha256 of the checkpoint's files."""
        return cls(
            {
                "qspec_lock": FORMAT,
                "recipe": recipe,
                "model": {"id": model, "revision": revision, "files": files},
                "calibration": {"tokens_sha256": calibration, "seed": seed},
                "packages": package_versions(),
                "machine": machine_kind(device),
            }
        )

    @property
    def digest(self) -> str:
        """What an interrupted run and the next must agree in."""
        return hashlib.sha256(self.text().encode()).hexdigest()

    def text(self) -> str:
        return json.dumps(self.content, indent=2, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> Lock:
        """Raises InputError where the file is absent or not a lock."""
        content = _content(path)
        if content is None:
            raise InputError("there is no lock file", where=str(path), hint=f"make it: qspec lock {path.stem}.qs")
        if content["qspec_lock"] != FORMAT:
            raise InputError(f"not a lock file of format {FORMAT}", where=str(path), hint="make it again: qspec lock")
        return cls(content)

    def write(self, path: Path) -> None:
        """Raises InputError where there is something else than a lock of qspec's, of any format; errors of the disk."""
        _content(path)
        write_whole(path, self.text())

    def require(self, actual: Lock, where: Path) -> None:
        """Raises InputError that names every key in which `actual` differs from this lock."""
        changes = differences(actual.content, self.content, "locked")
        if changes:
            raise InputError(
                "the lock does not hold: " + "; ".join(changes),
                where=str(where),
                hint="compile without --locked, or make the lock again: qspec lock",
            )


def _content(path: Path) -> dict[str, Any] | None:
    """A lock's values, of any format; None where there is no file. Raises InputError where it is something else."""
    try:
        if not path.exists():
            return None
        content = json.loads(read_input(path)) if path.is_file() else None
    except OSError as error:
        raise InputError(f"the lock file cannot be read: {error.strerror}", where=str(path)) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a lock file: {error}", where=str(path), hint="move it away") from None
    if not isinstance(content, dict) or "qspec_lock" not in content:
        raise InputError("not a lock file of qspec's", where=str(path), hint="move it away")
    return content


def machine_kind(device: torch.device, threads: int | None = None) -> str:
    """What bit-identical results depend on: the GPU's name, or the CPU's architecture, vector instructions and threads.

    Threads count because they split float sums; set OMP_NUM_THREADS to compare across machines. threads: those that
    compute, where it is not all that torch has now.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"cpu {platform.machine()} {capability}, {threads or torch.get_num_threads()} threads"


def checkpoint_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file that a compile reads from a checkpoint folder."""
    names = {p.name for p in folder.iterdir() if p.is_file() and p.suffix in (".safetensors", ".json")}
    return {name: sha256(folder / name) for name in sorted({*names, *tokenizer_files(folder)})}


def lock_path(recipe: Path) -> Path:
    """NAME.lock beside NAME.qs."""
    return recipe.with_suffix(".lock")


def package_versions() -> dict[str, str]:
    """qspec's own version, also where it is not installed, and those of what it computes with."""
    return {"qspec": __version__, **{name: _version(name) for name in PACKAGES}}


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "absent"


def differences(now: Any, before: Any, word: str, where: str = "") -> list[str]:
    """One sentence for every key in which two locks' contents differ. word: what `before` is called."""
    if isinstance(before, dict) and isinstance(now, dict):
        sentences = []
        for key in sorted({*before, *now}):
            inner = f"{where}.{key}" if where else key
            sentences += differences(now.get(key), before.get(key), word, inner)
        return sentences
    return [] if before == now else [f"{where} is {_short(now)}, {word} {_short(before)}"]


def _short(value: Any) -> str:
    """A hash's first digits tell it apart; a machine's description differs at its end."""
    text = "absent" if value is None else str(value)
    if re.fullmatch(r"[0-9a-f]{25,}", text):
        return f"{text[:12]}..."
    return text if len(text) <= 100 else f"{text[:100]}..."
