"""The lock: exactly which model files, tokenizer, data and packages an artifact is made from. No torch.

NAME.lock is a TOML file that lives in git beside NAME.qs. It has one fact a line, sorted, and a blank line between two,
so that branches that change different facts merge line by line. No fact is computed from others: the recipe, which git
has too, is not hashed, nor are the calibration tokens, which follow from recipe, data, tokenizer and seed.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qspec.data import DataPin
from qspec.diagnostics import Diagnostic, Span, quote
from qspec.errors import InputError
from qspec.files import read_input, sha256_each, write_whole
from qspec.language.spec import Spec
from qspec.models.tokenizer import tokenizer_files
from qspec.version import __version__

FORMAT = 2
MAX_BYTES = 8 << 20
KEY = "qspec_lock"
PACKAGES = ("torch", "triton", "transformers", "safetensors", "numpy")
MACHINE = "machine"  # the section that is told, and enforced by `--locked=strict` alone
EVALUATION = ("nelbo", "tasks")  # data that measure an artifact and do not make it
SECTIONS = ("calibration", "data", MACHINE, "model", "packages", "tokenizer")
HEAD = "# What this recipe's artifact is made from. Written by `qspec lock`, compared by `qspec lock --check`."
_BARE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_OURS = re.compile(rf'^(\s*"{KEY}": \d+,?|{KEY} = \d+)$', re.MULTILINE)


@dataclass(frozen=True)
class Lock:
    """content: section -> fact -> value, as TOML reads it; compared key by key."""

    content: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        *,
        id: str,
        revision: str,
        folder: Path,
        seed: int,
        data: Sequence[DataPin],
        machine: Mapping[str, str | int],
    ) -> Lock:
        """The lock of these inputs. id, revision: what the checkpoint in `folder` is called. seed: of calibration."""
        hashes = checkpoint_hashes(folder)
        names = tokenizer_files(folder)
        return cls(
            {
                KEY: FORMAT,
                "calibration": {"seed": seed},
                "data": _data(data),
                MACHINE: dict(machine),
                "model": {
                    "id": id,
                    "revision": revision,
                    "files": {name: digest for name, digest in hashes.items() if name not in names},
                },
                "packages": package_versions(),
                "tokenizer": {name: hashes[name] for name in names},
            }
        )

    @property
    def files(self) -> dict[str, str]:
        """Name -> sha256 of all files of the checkpoint, as `checkpoint_hashes` gives them."""
        return dict(sorted({**self.content["model"]["files"], **self.content["tokenizer"]}.items()))

    @property
    def compiled(self) -> Lock:
        """What an artifact depends on: all but the data that measure it."""
        kept = {name: facts for name, facts in self.content["data"].items() if name not in EVALUATION}
        return Lock({**self.content, "data": kept})

    def text(self) -> str:
        """As it is stored."""
        return "\n\n".join([HEAD, f"{KEY} = {self.content[KEY]}", *_sections(self.content)]) + "\n"

    @classmethod
    def read(cls, path: Path) -> Lock:
        """Raises InputError where the file is absent or not a lock of this format."""
        text = lock_text(path)
        if text is None:
            raise InputError("there is no lock file", where=str(path), hint=f"make it: qspec lock {path.stem}.qs")
        again = f"make it again: qspec lock {path.stem}.qs"
        try:
            content = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            what = "the lock has merge conflicts" if "\n<<<<<<< " in text else f"not a lock file of format {FORMAT}"
            where = re.search(r"line \d+", str(error))
            raise InputError(what, where=f"{path}: {where[0]}" if where else str(path), hint=again) from None
        content = {**{name: {} for name in SECTIONS}, **content}
        tables = (*(content[name] for name in SECTIONS), *_values(content["data"]))
        if content.get(KEY) != FORMAT or not all(isinstance(table, dict) for table in tables):
            raise InputError(f"not a lock file of format {FORMAT}", where=str(path), hint=again)
        return cls(content)

    def write(self, path: Path) -> None:
        """Raises InputError where there is something else than a lock of qspec's, of any format; errors of the disk."""
        lock_text(path)
        write_whole(path, self.text())

    def stale(self, actual: Lock) -> list[str]:
        """One sentence for every fact but the machine's in which `actual` differs."""
        now, before = ({k: v for k, v in lock.content.items() if k != MACHINE} for lock in (actual, self))
        return differences(now, before, "locked")

    def machine(self, actual: Lock) -> list[str]:
        """One sentence for every fact of the machine in which `actual` differs."""
        return differences(actual.content[MACHINE], self.content[MACHINE], "locked", MACHINE)

    def require(self, actual: Lock, where: Path, *, strict: bool = False) -> list[str]:
        """What is to be told: how the machine differs. Raises InputError that names every fact that differs.

        strict: the machine's facts among them.
        """
        told = self.machine(actual)
        changes = self.stale(actual) + (told if strict else [])
        if changes:
            raise InputError(
                "the lock does not hold: " + "; ".join(changes),
                where=str(where),
                hint="compile without --locked, or make the lock again: qspec lock",
            )
        return told


def recipe_changes(lock: Lock, spec: Spec) -> list[str]:
    """One sentence for every fact of the recipe's own, known without model and data, that its lock has otherwise."""
    calibrate, evaluate = spec.calibrate, spec.evaluate
    locked = {use: dict.fromkeys(facts, "named") for use, facts in lock.content["data"].items()}
    named = {
        "calibration": {calibrate.source.name: "named"},
        "nelbo": {request.text.name: "named" for request in evaluate.nelbo},
        "tasks": {task.name: "named" for task in evaluate.tasks},
    }
    now = {"model.id": spec.model.id, "calibration.seed": calibrate.seed}
    before = {"model.id": lock.content["model"].get("id"), "calibration.seed": lock.content["calibration"].get("seed")}
    return differences(now, before, "locked") + differences(named, locked, "locked", "data")


def lock_problems(spec: Spec, span: Span) -> tuple[Diagnostic, ...]:
    """Warnings, at `span`, of what the lock beside a recipe has otherwise than the recipe itself."""
    path = lock_path(Path(spec.source))
    try:
        stale = [f"is stale: {change}" for change in recipe_changes(Lock.read(path), spec)]
    except InputError as error:
        stale = [f"cannot be compared: {error.what}"]
    hint = f"write it again: qspec lock {path.with_suffix('.qs').name}"
    return tuple(Diagnostic("QS071", f"{quote(path.name)} {what}", span, hint, "warning") for what in stale)


def package_changes(lock: Lock) -> list[str]:
    """One sentence for every package that is here in another version."""
    return differences(package_versions(), lock.content["packages"], "locked", "packages")


def _data(pins: Sequence[DataPin]) -> dict[str, Any]:
    """Use -> name -> revision, where there is one, and hash."""
    data: dict[str, Any] = {}
    for pin in pins:
        revision = {"revision": pin.revision} if pin.revision else {}
        data.setdefault(pin.use, {})[pin.name] = {**revision, "sha256": pin.sha256}
    return data


def lock_text(path: Path) -> str | None:
    """A lock's text, of any format or in conflict; None where there is no file. Raises InputError where it is something
    else."""
    try:
        if not path.exists():
            return None
        text = read_input(path, MAX_BYTES).decode() if path.is_file() else ""
    except OSError as error:
        raise InputError(f"the lock file cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError:
        text = ""
    if not _OURS.search(text):
        raise InputError("not a lock file of qspec's", where=str(path), hint="move it away")
    return text


def _values(table: object) -> tuple[object, ...]:
    return tuple(table.values()) if isinstance(table, dict) else ()


def _sections(table: Mapping[str, Any], head: str = "") -> Iterator[str]:
    """The facts of a table, the first below its head, then those of the tables in it."""
    facts = [f"{_key(k)} = {_value(v)}" for k, v in sorted(table.items()) if not _is_table(v) and k != KEY]
    if head and facts:
        facts[0] = f"[{head}]\n{facts[0]}"
    yield from facts
    for name, inner in sorted(table.items()):
        if _is_table(inner):
            yield from _sections(inner, f"{head}.{_key(name)}" if head else _key(name))


def _is_table(value: object) -> bool:
    """Whether it has a head of its own: one that describes a single data set is a line."""
    return isinstance(value, dict) and "sha256" not in value


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in sorted(value.items())) + " }"
    return str(value) if isinstance(value, int) else _quoted(str(value))


def _key(text: str) -> str:
    return text if _BARE.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    """TOML's basic strings are JSON's, but for the delete character."""
    return json.dumps(text.encode(errors="replace").decode(), ensure_ascii=False).replace("\x7f", "\\u007f")


def checkpoint_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file that a compile reads from a checkpoint folder."""
    names = {p.name for p in folder.iterdir() if p.is_file() and p.suffix in (".safetensors", ".json")}
    found = sorted({*names, *tokenizer_files(folder)})
    return dict(zip(found, sha256_each([folder / name for name in found]), strict=True))


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
    """One sentence, with both values whole, for every key in which two contents differ. word: what `before` is
    called."""
    if isinstance(now, dict) != isinstance(before, dict):  # a table that one of them lacks, fact by fact
        now, before = ({} if value is None else value for value in (now, before))
    if isinstance(before, dict) and isinstance(now, dict):
        sentences = []
        for key in sorted({*before, *now}):
            inner = f"{where}.{key}" if where else key
            sentences += differences(now.get(key), before.get(key), word, inner)
        return sentences
    return [] if before == now else [f"{where} is {_shown(now)}, {word} {_shown(before)}"]


def _shown(value: object) -> str:
    return "absent" if value is None else str(value)
