"""Data sets of the hub: where their files are on this machine, at a pinned revision. No torch.

Files are looked for below $QSPEC_DATA/OWNER/NAME, laid out as on the hub, which is what

    hf download OWNER/NAME --repo-type dataset --revision REVISION --local-dir $QSPEC_DATA/OWNER/NAME

makes, and then in the hub's own cache. Nothing is fetched unless that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qspec.errors import InputError
from qspec.models.locate import hub_snapshot

DATA_VARIABLE = "QSPEC_DATA"
LOCAL = "local copy"  # in the place of a revision, where $QSPEC_DATA has the files
REVISIONS: Mapping[str, str] = {
    "EleutherAI/hendrycks_math": "21a5633873b6a120296cce3e2df9d5550074f4a3",
    "Rowan/hellaswag": "218ec52e09a7e7462a5400043bb9a69a41d06b76",
    "Salesforce/wikitext": "b08601e04326c79dfdd32d625aee71d232d685c3",
    "allenai/ai2_arc": "210d026faf9955653af8916fad021475a3f00453",
    "allenai/c4": "1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
    "allenai/openbookqa": "388097ea7776314e93a529163e0fea805b8a6454",
    "allenai/winogrande": "01e74176c63542e6b0bcb004dcdea22d94fb67b5",
    "baber/piqa": "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1",
    "cais/mmlu": "c30699e8356da336a370243923dbaf21066bb9fe",
    "google-research-datasets/mbpp": "4bb6404fdc6cacfda99d4ac4205087b89d32030c",
    "mit-han-lab/pile-val-backup": "2f5e46ae6a69cf0dce4b12f78241c408936ca0e4",
    "openai/gsm8k": "740312add88f781978c0658806c59bc2815b9866",
    "openai/openai_humaneval": "7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544",
}
WHOLE = "*"  # the pattern of all files of a data set, which the package datasets reads by its own rules
SHOWN = 4  # patterns that a message lists
_FORMATS = (".parquet", ".json", ".jsonl")
_PACKED = (".gz", ".zst")


@dataclass(frozen=True)
class Found:
    """Files of a data set on this machine. files: sorted, one at least for each pattern."""

    folder: Path
    revision: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class HubData:
    """Files of one data set of the hub. files: patterns below its folder, such as `main/*`."""

    id: str
    files: tuple[str, ...]

    @property
    def revision(self) -> str:
        """A commit where the data set is a known one; for others the main branch, as the cache has it."""
        return REVISIONS.get(self.id, "main")

    def __str__(self) -> str:
        more = f" and {len(self.files) - SHOWN} more" if len(self.files) > SHOWN else ""
        return f"{self.id} at {self.revision[:12]} ({', '.join(self.files[:SHOWN])}{more})"

    def find(self, environment: Mapping[str, str], *, download: bool = False) -> Found | None:
        """Its files, or None where one of them is missing. download: fetch what the cache lacks.

        Errors: InputError where $QSPEC_DATA is no folder; as `hub_snapshot`.
        """
        local = environment.get(DATA_VARIABLE)
        if local and not Path(local).is_dir():
            raise InputError(f"{DATA_VARIABLE} does not name a folder", where=local)
        if local and (folder := Path(local) / self.id).is_dir():
            return self._in(folder, LOCAL)
        snapshot = hub_snapshot(self.id, self.revision, self.files, kind="dataset", download=False)
        found = self._in(snapshot, snapshot.name) if snapshot else None
        if found or not download:
            return found
        snapshot = hub_snapshot(self.id, self.revision, self.files, kind="dataset", download=True)
        return self._in(snapshot, snapshot.name) if snapshot else None

    def _in(self, folder: Path, revision: str) -> Found | None:
        """The files of every pattern, or None where one has none."""
        parts = [_matching(folder, one) for one in self.files]
        files = {path: None for part in parts for path in part}
        return Found(folder, revision, tuple(files)) if all(parts) else None


def needs_extra(what: str, package: str) -> InputError:
    """The error for a package of the extra `eval` that is not installed."""
    return InputError(
        f"{what} needs the package {package}, which is not installed", hint="install it: pip install 'qspec[eval]'"
    )


def _matching(folder: Path, pattern: str) -> list[Path]:
    if pattern == WHOLE:
        return sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in sorted(folder.glob(pattern)) if is_rows(path)]


def is_rows(path: Path) -> bool:
    """Whether a file holds rows, by its name: Parquet, JSON or JSON lines, packed or not."""
    return (Path(path.stem) if path.suffix in _PACKED else path).suffix in _FORMATS
