from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from qspec import resources
from qspec.errors import InputError, MachineError
from qspec.models.locate import checkpoint_locate
from tests.models.layout import TINY, random_weights, write_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache; the network is out of reach."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(cache: Path, name: str = "owner/tiny", revision: str = "main") -> Path:
    """The snapshot folder that the hub's cache layout gives a model."""
    model = cache / f"models--{name.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / revision).write_text(COMMIT)
    return model / "snapshots" / COMMIT


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "tiny").mkdir(parents=True)
    assert checkpoint_locate(tmp_path / "owner") == tmp_path / "owner"
    monkeypatch.chdir(tmp_path)
    assert checkpoint_locate("owner/tiny") == Path("owner/tiny")  # a folder comes before the hub


def test_a_bundled_stand_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoint_locate("tiny-llada") == resources.standin("llada")
    with pytest.raises(InputError, match="neither a folder"):
        checkpoint_locate("tiny-nobody")
    (tmp_path / "tiny-llada").mkdir()
    monkeypatch.chdir(tmp_path)
    assert checkpoint_locate("tiny-llada") == Path("tiny-llada")  # a folder comes first here too


@pytest.mark.parametrize("shards", [1, 2])
def test_a_cached_model_is_found(cache: Path, shards: int) -> None:
    folder = cached(cache)
    write_checkpoint(folder, TINY, random_weights(TINY), shards)
    assert checkpoint_locate("owner/tiny", "main") == folder
    assert checkpoint_locate("owner/tiny", COMMIT) == folder
    assert checkpoint_locate("owner/tiny", None) == folder
    assert checkpoint_locate("owner/tiny", "other") is None
    assert checkpoint_locate("owner/absent", "main") is None


def test_a_cache_with_half_of_the_weights_is_no_checkpoint(cache: Path) -> None:
    folder = cached(cache)
    files = write_checkpoint(folder, TINY, random_weights(TINY), shards=2)
    (folder / max(files.values())).unlink()
    assert checkpoint_locate("owner/tiny") is None
    assert checkpoint_locate("owner/tiny", weights=False) == folder


def test_a_cached_config_alone_serves_where_no_weights_are_needed(cache: Path) -> None:
    folder = cached(cache)
    folder.mkdir(parents=True)
    assert checkpoint_locate("owner/tiny", weights=False) is None
    (folder / "config.json").write_text(json.dumps(TINY))
    assert checkpoint_locate("owner/tiny", weights=False) == folder
    assert checkpoint_locate("owner/tiny") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nowhere",
        "/no/such/folder",
        "./owner/tiny",
        "a/b/c",
        "../no-such/x",
        "a--b/c",
        "~nobody/x",
        "a\0b/c",
    ],
)
def test_what_is_neither_folder_nor_id_is_refused(text: str) -> None:
    with pytest.raises(InputError) as caught:
        checkpoint_locate(text)
    assert f"{text!r} is neither a folder nor a hub id" in caught.value.what


def test_a_path_is_never_taken_for_a_hub_id() -> None:
    with pytest.raises(InputError, match="neither a folder"):
        checkpoint_locate(Path("owner/tiny"))


@pytest.mark.parametrize("revision", ["../../../etc", "", "-x", "a\nb", "a b"])
def test_a_revision_cannot_leave_the_cache(cache: Path, revision: str) -> None:
    assert not cache.exists()
    with pytest.raises(InputError) as caught:
        checkpoint_locate("owner/tiny", revision)
    assert f"{revision!r} is not a revision" in caught.value.what


def test_nothing_is_downloaded_unasked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def recorded(id: str, **options: Any) -> str:
        calls.append({"id": id, **options})
        if options["local_files_only"]:
            raise LocalEntryNotFoundError("not cached")
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", recorded)
    assert checkpoint_locate("owner/tiny", "v1") is None
    assert [call["local_files_only"] for call in calls] == [True]
    assert checkpoint_locate("owner/tiny", "v1", download=True) == cache
    asked = calls[-1]
    assert (asked["id"], asked["revision"], asked["local_files_only"]) == ("owner/tiny", "v1", False)
    assert "*.safetensors" in asked["allow_patterns"]
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in asked["allow_patterns"])


def _hub_error(kind: Any, text: str) -> Exception:
    error: Exception = kind.__new__(kind)  # its own constructor wants a response of the transport library
    error.args = (text,)
    return error


@pytest.mark.parametrize(
    ("error", "kind", "what"),
    [
        (_hub_error(RepositoryNotFoundError, "404"), InputError, "the hub has no model owner/tiny at main"),
        (_hub_error(GatedRepoError, "403"), InputError, "owner/tiny is gated on the hub"),
        (LocalEntryNotFoundError("no route\nmore"), MachineError, "could not be downloaded: no route"),
        (OSError(28, "No space left on device"), MachineError, "No space left on device"),
        (RuntimeError(""), MachineError, "could not be downloaded: RuntimeError"),
    ],
)
def test_a_failed_download_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], what: str
) -> None:
    def failing(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", failing)
    with pytest.raises(kind) as caught:
        checkpoint_locate("owner/tiny", download=True)
    assert what in str(caught.value)
    assert "\n" not in caught.value.what  # type: ignore[attr-defined]
